"""``serve``: the model online, a command a tier."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tastetwin import console
from tastetwin.cli.options import GATEWAY_KEY as KEY
from tastetwin.cli.options import ConfigOption, StoreOption, key_of, settings_of

serve_app = typer.Typer(no_args_is_help=True, help="The model online: model backend, model gateway, app.")


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
    serve_backend(Store.open(store), version or [], settings_of(config).backend, listen, _tell)


@serve_app.command()
def gateway(
    store: StoreOption,
    keys: Annotated[Path, typer.Option("--keys", help="API keys; see: tastetwin keys add", metavar="FILE")],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8102,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="/metrics for Prometheus; without it there are none.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    drain_seconds: Annotated[
        float, typer.Option(min=0, max=600, help="Between the signal to end and the end of accepting.")
    ] = 2.0,
    config: ConfigOption = None,
) -> None:
    """Model gateway: favors and user ids in, twins out; one API with documentation at /docs.

    Example: `tastetwin serve gateway --store store/ --keys keys.json`
    """
    from tastetwin.serving.gateway.serve import serve_gateway
    from tastetwin.serving.server import Listen
    from tastetwin.store import Store

    listen = Listen(host, port, metrics_port, drain_seconds)
    serve_gateway(Store.open(store), settings_of(config), keys, listen, _tell, sys.stderr.buffer)


@serve_app.command()
def app(
    keys: Annotated[Path, typer.Option("--keys", help="API keys of the product's servers.", metavar="FILE")],
    secret: Annotated[
        Path, typer.Option("--secret", help="Signs user tokens; made if it is not there.", metavar="FILE")
    ],
    gateway_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the key for the gateway.", show_default=f"the key itself in {KEY}", metavar="FILE"
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8103,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="/metrics for Prometheus; without it there are none.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    drain_seconds: Annotated[
        float, typer.Option(min=0, max=600, help="Between the signal to end and the end of accepting.")
    ] = 2.0,
    config: ConfigOption = None,
) -> None:
    """App: the product's Web API, my twins and what I make of them; documentation at /docs.

    Example: `tastetwin serve app --keys keys.json --secret secret.txt --gateway-key gateway.key`
    """
    from tastetwin.serving.app.serve import Credentials, serve_app
    from tastetwin.serving.server import Listen

    listen = Listen(host, port, metrics_port, drain_seconds)
    serve_app(settings_of(config).app, Credentials(keys, key_of(gateway_key), secret), listen, _tell, sys.stderr.buffer)


def _tell(what: str) -> None:
    console.err.print(what, markup=False, soft_wrap=True)
