"""``deploy``: a run to where it is served, blue-green."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tastetwin import console
from tastetwin.cli.options import GATEWAY_KEY, ConfigOption, JsonOption, StoreOption, key_of, needs, say, settings_of
from tastetwin.errors import UsageError

if TYPE_CHECKING:
    from tastetwin.config import Config
    from tastetwin.deploy.kubernetes import KubernetesTarget
    from tastetwin.deploy.local import LocalTarget
    from tastetwin.deploy.steps import Standing
    from tastetwin.runs import Run
    from tastetwin.store import Store


class Where(StrEnum):
    """Targets."""

    local = "local"
    kubernetes = "kubernetes"


class Step(StrEnum):
    """What can be asked for by itself; ``deploy`` names all in its text, where lines break between words."""

    model = "model"
    app = "app"
    switch = "switch"
    check = "check"
    remove_app = "remove-app"
    remove_model = "remove-model"
    rollback = "rollback"
    status = "status"
    stop = "stop"


ASKING: Final = (None, Step.app, Step.check, Step.rollback)
"""What asks a gateway golden queries, and so needs a key of it."""


def deploy(
    store: StoreOption,
    target: Annotated[Where, typer.Option(help="This machine, or a cluster.")],
    step: Annotated[
        Step | None,
        typer.Argument(
            help="Only this.", metavar="STEP", show_choices=False, show_default="all, and back if one fails"
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Run to serve.", metavar="RUN_ID", show_default="the published one")
    ] = None,
    home: Annotated[
        Path, typer.Option("--home", help="Local: keys, secrets, what runs; as of serve.", metavar="DIR")
    ] = Path("tastetwin-home"),
    gateway_key: Annotated[
        Path | None,
        typer.Option(
            help="Kubernetes: file with a key of the gateway, scopes twins and embed.",
            show_default=f"the key itself in {GATEWAY_KEY}",
            metavar="FILE",
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a run beside the one that is served, ask it golden queries, switch, check, remove the old one.

    Steps, each of which can be given again after whatever end: model, app, switch, check, remove-app, remove-model.
    Without one all are done, and if one fails everything goes back by itself. `rollback` goes back by hand, `status`
    says what runs, `stop` ends all that runs on this machine.

    Example: `tastetwin deploy --target local --store store/`
    """
    from tastetwin.store import Store

    with needs("serve"):
        from tastetwin.deploy.steps import Deployment
    opened, settings = Store.open(store), settings_of(config)
    if target == Where.kubernetes:
        made: Any = _cluster(opened, settings, key_of(gateway_key) if step in ASKING else "")
    else:
        made = _machine(opened, settings, home, step)
    if step == Step.status:
        say(_shown(made.standing()), as_json)
        return
    with made.alone():
        if step == Step.stop:
            made.stop()
            return
        wanted = _wanted(opened, run)
        if step == Step.rollback and run is None:
            _see_that_it_answers(wanted.run_id, made.standing().live)
        deployment = Deployment(made, opened, wanted, settings.deploy, console.tell)
        if step is None:
            deployment.all_steps()
        else:
            deployment.step(step)
        say(_shown(made.standing()), as_json)


def _wanted(store: Store, run: str | None) -> Run:
    from tastetwin.runs import published_run, read_run

    return published_run(store) if run is None else read_run(store, run)


def _see_that_it_answers(published: str, live: str | None) -> None:
    """After ``tastetwin rollback`` the published run is the good one: taking that away would keep the bad one."""
    if live not in (None, published):
        raise UsageError(
            "DEPLOY-WHICH",
            place="--run",
            value=f"{live} answers, {published} is published",
            rule="the run to take away is named where these differ",
            fix="--run RUN_ID; or 'tastetwin deploy' without a step puts the published run in place",
        )


def _cluster(store: Store, settings: Config, key: str) -> KubernetesTarget:
    from tastetwin.deploy.kubernetes import KubernetesTarget

    return KubernetesTarget(store, settings, key)


def _machine(store: Store, settings: Config, home: Path, step: Step | None) -> LocalTarget:
    from tastetwin.deploy.local import LocalTarget
    from tastetwin.serving.together import Home

    at = Home(home, None) if step in (Step.status, Step.stop) else Home.at(home)
    if at.new_key is not None:
        console.tell(f"key: {at.new_key}  (may do everything; only its hash is kept, so note it down)")
    return LocalTarget(at, store, settings)


def _shown(standing: Standing) -> dict[str, Any]:
    ready = {True: "ready", False: "not ready"}
    return {
        "live": standing.live or "none",
        "previous": standing.previous or "none",
        "models": ", ".join(f"{run} {ready[up]}" for run, up in sorted(standing.models.items())) or "none",
        "apps": ", ".join(f"{run} {ready[up]}" for run, up in sorted(standing.apps.items())) or "none",
        "load balancer": ready[standing.balancer],
    }
