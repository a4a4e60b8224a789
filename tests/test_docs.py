"""The reference pages say what the code does, the error codes are all explained, and no link leads nowhere."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest

from tastetwin import errors
from tastetwin.serving.app.events.metrics import Metrics as EventMetrics
from tastetwin.serving.backend.metrics import Metrics as ModelMetrics
from tastetwin.serving.gateway.backends import BackendMetrics
from tastetwin.serving.gateway.fresh import FreshMetrics
from tastetwin.serving.gateway.http import Shadows
from tastetwin.serving.gateway.metrics import State
from tastetwin.serving.gateway.outputs import OutputMetrics
from tastetwin.serving.telemetry import Telemetry

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "README.ko.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
CODE: Final = re.compile(r"[A-Z]{2,}(-[A-Z]+)+")
"""How error codes and the gate's findings are spelled."""
NO_CODES: Final = {"YYYY-MM-DD"}
CLASSES: Final = {
    name: kind.exit_code
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.TasteTwinError)
}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "text"), generator().pages().items(), ids=list(generator().pages()))
def test_generated_pages_are_up_to_date(name: str, text: str) -> None:
    """After a change of settings, options or tables: python docs/generate_reference.py."""
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == text


def codes_in_source() -> dict[str, int | None]:
    """Every code the source can say, with the exit code where it is raised by a class named on the spot."""
    found: dict[str, int | None] = {}
    for module in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                found.setdefault(node.value, None)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
                found |= dict.fromkeys(_first_argument(node), CLASSES[node.func.id])
    return {code: exit_code for code, exit_code in found.items() if code not in NO_CODES}


def _first_argument(call: ast.Call) -> Iterator[str]:
    for node in ast.walk(call.args[0]) if call.args else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isupper():
            yield node.value


def codes_in_docs() -> dict[str, str]:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([A-Z-]+)` \| (\w+) \|", text, flags=re.MULTILINE))


def test_every_code_is_explained_and_every_explained_code_exists() -> None:
    """A code is a promise: somebody will look it up, and somebody will match on it."""
    assert set(codes_in_docs()) == set(codes_in_source())


def test_the_page_gives_the_exit_code_that_the_class_has() -> None:
    """A scheduler decides by the exit code whether to try again."""
    documented = codes_in_docs()
    raised = {code: str(exit_code) for code, exit_code in codes_in_source().items() if exit_code is not None}
    assert {code: documented[code] for code in raised} == raised


def metrics_of_all_tiers() -> set[str]:
    """As Prometheus will see them."""
    telemetry = Telemetry("gateway", io.BytesIO())
    telemetry.answered(b"r1", "GET", "/", 503, 0.1, "", "HTTP-BUSY")
    for made in (BackendMetrics, OutputMetrics, FreshMetrics, Shadows, EventMetrics):
        made(telemetry.registry)
    version = SimpleNamespace(name="2026-11-22.1", people=SimpleNamespace(n_fresh=0))
    service: Any = SimpleNamespace(stale_answers=0, intake=SimpleNamespace(unread=0), versions={"v": version})
    service.denied = SimpleNamespace(age=lambda: 0.0)
    State(SimpleNamespace(service=service), telemetry.registry)  # type: ignore[arg-type]
    text = telemetry.render().decode() + ModelMetrics().text().decode()
    kinds = re.findall(r"^# TYPE (\w+) (\w+)", text, flags=re.MULTILINE)
    more = {f"{name}_{end}" for name, kind in kinds if kind == "histogram" for end in ("bucket", "sum", "count")}
    return {name for name, _ in kinds} | more


def test_metrics_that_pages_name_exist() -> None:
    """An alert on a metric that is not there never rings."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = set(re.findall(r"\btastetwin_(?:gateway|backend|events|request|refused)\w*", text))
    assert len(found) > 3 and found <= metrics_of_all_tiers()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A newcomer follows links; one that is dead ends the visit."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_lead_somewhere(page: Path) -> None:
    """Whoever follows one at night must not have to look for the right one of eleven runbooks."""
    links = re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    inside = [(page.parent / path if path else page, anchor) for path, anchor in links if "://" not in path]
    assert not [(path.name, anchor) for path, anchor in inside if anchor not in headings(path)]


def test_every_page_is_in_the_index() -> None:
    """A page that nobody links to is written for nobody."""
    linked = set(re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")} - {"index.md"}
    assert pages <= linked
