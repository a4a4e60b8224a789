"""The notebooks run on a small town, import the package and hold no logic; as saved they show nothing of anybody."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import nbformat
import pytest

from tests.world import Journey

ROOT: Final = Path(__file__).parent.parent
NOTEBOOKS: Final = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGE: Final = ROOT / "deploy" / "airflow" / "notebooks" / "stage.ipynb"
USER: Final = "user_and_twins"
RUN: Final = "run_funnel_and_quality"
LOGIC: Final = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Try, ast.Lambda)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_both_notebooks_are_there() -> None:
    """The tests below are worth nothing about a folder that is empty."""
    assert [path.stem for path in NOTEBOOKS] == [RUN, USER]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_saved_notebook_holds_no_output_and_no_place_of_a_machine(path: Path) -> None:
    """Outputs are somebody's users; they belong to whoever ran it."""
    nbformat.validate(read(path))
    for cell in read(path).cells:
        assert not re.search(r"""["'\s](/|[A-Z]:\\|~/)\w""", cell.source), cell.source
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_parameters_and_no_logic(path: Path) -> None:
    """What is worth computing is worth a test, and lives in the package."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in cells[:2]] == [["parameters"], None]
    code = ast.parse("\n".join(cell.source for cell in cells))
    assert not [node for node in ast.walk(code) if isinstance(node, LOGIC)]


@pytest.mark.parametrize("path", [*NOTEBOOKS, STAGE], ids=lambda path: path.stem)
def test_what_a_notebook_imports_exists(path: Path) -> None:
    """No type checker reads them, and the one of a stage is otherwise run in a container only."""
    code = ast.parse("\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code"))
    imported = [
        (node.module, name.name) for node in ast.walk(code) if isinstance(node, ast.ImportFrom) for name in node.names
    ]
    assert imported
    for module, name in imported:
        assert hasattr(import_module(str(module)), name), f"{module} has no {name}"


def run_to_html(name: str, folder: Path, **parameters: str) -> str:
    """A notebook carried out with parameters, as the page that ``jupyter nbconvert --to html`` writes."""
    from nbconvert import HTMLExporter
    from papermill import execute_notebook

    path = next(path for path in NOTEBOOKS if path.stem == name)
    done = execute_notebook(path, folder / f"{name}.ipynb", parameters=parameters, progress_bar=False)
    page, _ = HTMLExporter().from_notebook_node(done)
    return str(page)


@pytest.mark.slow
def test_a_user_s_page_shows_favors_twins_reasons_and_a_map(journey: Journey, tmp_path: Path) -> None:
    """What a planner opens it for; a cell that fails would raise here."""
    user = journey.tt.vectors()["user_idno"][0].as_py()
    page = run_to_html(USER, tmp_path, store=str(journey.store.root), user=user)
    for row in journey.tt.similar(user, k=20).to_pylist():
        assert row["twin_idno"] in page and row["evidence"].replace("&", "&amp;") in page
    for row in journey.tt.sql(f"SELECT place_id FROM favors WHERE user_idno = '{user}'").to_pylist():
        assert row["place_id"] in page
    assert page.count("<img") == 1


@pytest.mark.slow
def test_a_run_s_page_shows_funnel_quality_and_health(journey: Journey, tmp_path: Path) -> None:
    """Of the published run where none is named."""
    page = run_to_html(RUN, tmp_path, store=str(journey.store.root))
    assert journey.first.run_id in page
    for word in ("lines_read", "users_served", "category x region", "users in nobody", "truncated"):
        assert word in page, word
    assert page.count("<img") == 3


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_notebook(journey: Journey, tmp_path: Path) -> None:
    """A page that shows half of it would pass for the whole."""
    from papermill import PapermillExecutionError

    with pytest.raises(PapermillExecutionError, match="UNKNOWN-USER"):
        run_to_html(USER, tmp_path, store=str(journey.store.root), user="nobody of that name")
