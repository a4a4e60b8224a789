"""``serve``: the model online, a command a tier."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import GATEWAY_KEY as KEY
from tastetwin.cli.options import ClientOption, ConfigOption, StoreOption, key_of, needs, settings_of

serve_app = typer.Typer()
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", help="API keys; see: tastetwin keys add", metavar="FILE", show_default="serve.keys"),
]


MetricsPortOption = Annotated[
    int | None, typer.Option(min=0, max=65_535, help="/metrics for Prometheus; without it there are none.")
]
HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
GatewayKeyOption = Annotated[
    Path | None,
    typer.Option(help="File with the key for the gateway.", show_default=f"the key itself in {KEY}", metavar="FILE"),
]


@serve_app.callback(invoke_without_command=True, no_args_is_help=True)
def together(
    context: typer.Context,
    store: Annotated[str | None, typer.Option("--store", help="Serve this store by all tiers.", metavar="DIR")] = None,
    home: Annotated[
        Path,
        typer.Option("--home", help="Keys, secrets, and what outlives a restart; made at first use.", metavar="DIR"),
    ] = Path("tastetwin-home"),
    port: Annotated[
        int, typer.Option(min=1, max=65_523, help="Of the backend; gateway, app and events take the next three.")
    ] = 8101,
    config: ConfigOption = None,
) -> None:
    """The model online: model backend, model gateway, app.

    Without a command: all tiers on this machine, until ctrl-C.

    Example: `tastetwin serve --store store/`
    """
    if context.invoked_subcommand is not None:
        return
    if store is None:
        raise typer.BadParameter("name a store, or a tier", param_hint="--store")
    from tastetwin.runs import published_run
    from tastetwin.store import Store

    with needs("serve"):
        from tastetwin.serving.together import Home, all_tiers, check_ports, keep_running
    settings = settings_of(config)
    published_run(Store.open(store))
    check_ports(port, 3 if settings.app.brokers is None else 4)
    made = Home.at(home)
    if made.new_key is not None:
        console.tell(f"key: {made.new_key}  (may do everything; only its hash is kept, so note it down)")
    tiers = all_tiers(store, made, settings, config, port)
    pages = [f"http://127.0.0.1:{port + number}/docs" for number in (1, 2)]
    keep_running(tiers, f"ready: model gateway {pages[0]}  app {pages[1]}", console.tell)
    console.tell("ended")


@serve_app.command()
def backend(
    store: StoreOption,
    version: Annotated[
        list[str] | None,
        typer.Option("--version", help="Bundle to load; several may be given.", show_default="the published run's"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="HTTP; 0 takes any that is free.")] = 8101,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65_535, help="gRPC; without it there is none.")] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Load and unload versions, on 127.0.0.1; without it nobody can."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; nobody is asked for a key.")] = "127.0.0.1",
    config: ConfigOption = None,
) -> None:
    """Model backend: tensors in, taste vectors out, by the Open Inference Protocol v2.

    Example: `tastetwin serve backend --store store/ --grpc-port 8201`
    """
    from tastetwin.serving.backend.serve import Listen, serve_backend
    from tastetwin.store import Store

    listen = Listen(host, port, grpc_port, admin_port)
    serve_backend(Store.open(store), version or [], settings_of(config).backend, listen, console.tell)


@serve_app.command()
def gateway(
    store: StoreOption,
    keys: KeysOption = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8102,
    metrics_port: MetricsPortOption = None,
    host: HostOption = "127.0.0.1",
    config: ConfigOption = None,
) -> None:
    """Model gateway: favors and user ids in, twins out; one API with documentation at /docs.

    Example: `tastetwin serve gateway --store store/ --keys keys.json`
    """
    from tastetwin.store import Store

    with needs("serve"):
        from tastetwin.serving.gateway.serve import serve_gateway
        from tastetwin.serving.server import Listen

    settings, listen = settings_of(config), Listen(host, port, metrics_port, sys.stderr.buffer)
    serve_gateway(Store.open(store), settings, _keys(keys, settings.serve.keys), listen, console.tell)


@serve_app.command()
def app(
    secret: Annotated[
        Path, typer.Option("--secret", help="Signs user tokens; made if it is not there.", metavar="FILE")
    ],
    keys: KeysOption = None,
    gateway_key: GatewayKeyOption = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8103,
    metrics_port: MetricsPortOption = None,
    host: HostOption = "127.0.0.1",
    config: ConfigOption = None,
) -> None:
    """App: the product's Web API, my twins and what I make of them; documentation at /docs.

    Example: `tastetwin serve app --keys keys.json --secret secret.txt --gateway-key gateway.key`
    """
    with needs("serve"):
        from tastetwin.serving.app.serve import Credentials, serve_app
        from tastetwin.serving.server import Listen

    settings, listen = settings_of(config), Listen(host, port, metrics_port, sys.stderr.buffer)
    credentials = Credentials(_keys(keys, settings.serve.keys), key_of(gateway_key), secret)
    serve_app(settings, credentials, listen, console.tell)


def _keys(given: Path | None, configured: str | None) -> Path:
    if given is None and configured is None:
        raise typer.BadParameter("name a file of API keys; tastetwin keys add makes one", param_hint="--keys")
    return Path(given or configured or "")


@serve_app.command()
def events(
    gateway_key: GatewayKeyOption = None,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="/metrics, /healthz, /readyz; 0 takes any that is free.")
    ] = 8104,
    host: HostOption = "127.0.0.1",
    client: ClientOption = None,
    instance: Annotated[
        str | None,
        typer.Option(help="Name of a static member: it may restart without a rebalance.", show_default="none"),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Pub/Sub: events from Kafka to the model gateway, changed twin lists back to Kafka. Topics: section `app`.

    Example: `tastetwin serve events --gateway-key gateway.key --config settings.yaml`
    """
    with needs("serve"):
        from tastetwin.client.client import Client
    with needs("kafka"):
        from tastetwin.serving.app.events.serve import Member, serve_events

    settings = settings_of(config)
    key = key_of(gateway_key)

    def gateway() -> Client:
        # Once only: what fails is tried again by the consumer, with its partitions paused.
        return Client(settings.app.gateway, key, model=settings.app.model, timeout=15.0, retries=0)

    serve_events(settings, gateway, Member(sys.stderr.buffer, host, metrics_port, client, instance), console.tell)
