"""Who may import whom. The tree shows the data's journey; imports may only go against its stream."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).parent.parent / "src" / "tastetwin"
MODULES: Final = sorted(SOURCE.rglob("*.py"))

CORE: Final = {
    "errors",
    "schema",
    "config",
    "masks",
    "settings",
    "filesystems",
    "jsonline",
    "durable",
    "store",
    "provenance",
    "generations",
    "runs",
    "tables",
    "engine",
    "progress",
    "logs",
}
STREAM: Final = (
    "privacy",
    "sources",
    "mart",
    "features",
    "model",
    "analysis",
    "evaluation",
    "tracking",
    "delivery",
    "page",
    "client",
    "serving",
    "deploy",
)
"""Upstream first: a stage may import from itself and from those before it."""
TOP: Final = {"pipeline", "api", "cli", "console", "demo", "__main__"}
"""What orders, shows and answers; no stage knows of it."""
HEAVY: Final = (
    *("torch", "onnxruntime", "faiss", "pyspark", "pysail", "matplotlib", "scipy"),
    *("structlog", "mlflow", "tensorboard"),
)
RUNS_CODE: Final = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def name_of(module: Path) -> str:
    return ".".join(module.relative_to(SOURCE).with_suffix("").parts)


def part_of(module: Path) -> str:
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("tastetwin.")} - {"__version__"}


def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def allowed(part: str) -> set[str]:
    if part in TOP | {"__init__"}:
        return CORE | TOP | set(STREAM)
    if part in CORE:
        return CORE
    return CORE | set(STREAM[: STREAM.index(part) + 1])


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_upstream_only(module: Path) -> None:
    """A stage that knew what comes after it could not be run, tested or replaced by itself."""
    part = part_of(module)
    assert part in CORE | TOP | set(STREAM) | {"__init__"}, f"say in this file where {part} belongs"
    assert parts_imported(parse(module)) <= allowed(part)


def test_the_core_has_no_circle_but_its_own_order() -> None:
    """``errors``, ``schema`` and ``progress`` are understood without reading anything else of ours."""
    for name in ("errors", "schema", "progress"):
        assert not parts_imported(parse(SOURCE / f"{name}.py"))


@pytest.mark.parametrize("what", ["tastetwin", "tastetwin.cli", "tastetwin.api", "tastetwin.schema"])
def test_importing_the_package_loads_nothing_heavy(what: str) -> None:
    """``tastetwin similar`` answers within a second only because nobody loads a training library for it."""
    code = f"import sys, {what}; print([name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert found.stdout.strip() == "[]"


MODELS: Final = ("faiss", "torch", "onnxruntime")
NUMERIC: Final = (*MODELS, "numpy", "scipy", "pyarrow", "pyspark", "duckdb", "matplotlib")


@pytest.mark.parametrize(
    ("what", "never"),
    [
        ("client", [*NUMERIC, "fastapi", "uvicorn", "tastetwin.serving"]),
        ("client.client", [*NUMERIC, "fastapi", "uvicorn", "tastetwin.serving"]),
        ("serving.app", [*NUMERIC, "tastetwin.serving.backend", "tastetwin.serving.gateway"]),
        ("serving.app.events", [*MODELS, "tastetwin.serving.backend", "tastetwin.serving.gateway"]),
        (
            "serving.backend",
            ["torch", "faiss", "tastetwin.serving.gateway", "tastetwin.serving.app", "tastetwin.client.client"],
        ),
        ("serving.gateway", ["torch", "onnxruntime", "tastetwin.serving.backend", "tastetwin.serving.app"]),
    ],
)
def test_a_tier_loads_nothing_of_another(what: str, never: list[str]) -> None:
    """Each has an image of its own: the app's holds no index, the gateway's no model, and a client's neither."""
    folder = SOURCE.joinpath(*what.split("."))
    inside = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    names = [f"tastetwin.{name_of(module)}".removesuffix(".__init__") for module in inside]
    code = f"import sys, {', '.join(names)}; print([name for name in {never!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) != "model"], ids=name_of)
def test_only_the_model_knows_torch(module: Path) -> None:
    """Everything but training runs where the 'train' extra is not installed."""
    assert not [name for name in imports(parse(module)) if name.split(".")[0] == "torch"]


def code_loading(tree: ast.AST) -> list[str]:
    """Whatever in a module could run code that lies in a data file."""
    found = [name for name in imports(tree) if name.split(".")[0] in RUNS_CODE]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            spelled = f"{node.value.id}.{node.attr}"
            found += [spelled] if spelled in ("torch.load", "torch.save", "yaml.load", "yaml.unsafe_load") else []
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            found.append(node.func.id)
    return found


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_loading_data_never_runs_code(module: Path) -> None:
    """A store or bundle from somewhere else must be able to do no more than be wrong."""
    assert not code_loading(parse(module))


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "torch.load(f)", "np.load(f, allow_pickle=True)", "eval(x)"],
)
def test_the_search_for_code_loading_finds_it(text: str) -> None:
    """The test above is worth what it can see."""
    assert code_loading(ast.parse(text))


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) not in {"console", "cli"}], ids=name_of)
def test_only_the_console_prints(module: Path) -> None:
    """Stages tell their progress to whoever asks; a library that prints cannot be embedded."""
    tree = parse(module)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    streams = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")]
    assert not [node for node in streams if isinstance(node.value, ast.Name) and node.value.id == "sys"]


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) not in {"deploy", "cli"}], ids=name_of)
def test_only_the_command_line_knows_of_deployment(module: Path) -> None:
    """A run is made and served in the same way whether or not something deploys it."""
    assert "deploy" not in parts_imported(parse(module))


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) == "deploy"], ids=name_of)
def test_deployment_calls_public_functions_only(module: Path) -> None:
    """What it does, an operator could do by hand with the same commands."""
    outside = [name for name in imports(parse(module)) if name.startswith("tastetwin.")]
    assert not [name for name in outside if any(part.startswith("_") for part in name.split("."))]
