"""Write the reference pages that follow from the code: ``python docs/generate_reference.py``.

A test holds the pages to the code, so a changed setting, option or table shows in the same change.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pyarrow as pa
from typer.main import get_command

from tastetwin import schema
from tastetwin.analysis import standing
from tastetwin.cli import app
from tastetwin.config import ENV_PREFIX, Config
from tastetwin.delivery import views
from tastetwin.features import user_favor

FOLDER: Final = Path(__file__).parent / "reference"
TABLES: Final[list[tuple[str, ModuleType, str]]] = [
    ("`result`", schema, "RESULT"),
    ("`twins`", schema, "TWINS"),
    ("`vectors`", schema, "VECTORS"),
    ("`user_favor`", user_favor, "USER_FAVOR"),
    ("`place`", schema, "PLACES"),
    ("`reviews` (mart)", schema, "REVIEWS"),
    ("`likes` (mart)", schema, "LIKES"),
    ("`quarantine`", schema, "QUARANTINE"),
    ("`exposure`", standing, "EXPOSURE"),
    ("`favors`", views, "FAVORS"),
    ("`runs`", views, "RUNS"),
    ("`funnel`", views, "FUNNEL"),
    ("`health`", views, "HEALTH"),
    ("`quality`", views, "QUALITY"),
]


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {"config.md": config_page(), "cli.md": cli_page(), "tables.md": tables_page()}


def config_page() -> str:
    """Every setting with its default and its sentence."""
    lines = [
        "# Settings",
        "",
        "Nobody needs a file for the first run. A file (`--config settings.yaml`, or `.toml`) wins over the defaults,",
        f"the environment (`{ENV_PREFIX}TRAIN__EPOCHS=3`) over the file. An unknown key is an error. What is in force,",
        "and where it comes from: `tastetwin config show --origin`.",
    ]
    defaults: Any = Config.model_construct()
    for section in Config.model_fields:
        values = getattr(defaults, section)
        said = " ".join((type(values).__doc__ or "").split())
        lines += ["", f"## {section}", "", said, "", "| key | default | meaning |", "|---|---|---|"]
        for key, field in type(values).model_fields.items():
            shown = "empty" if (value := getattr(values, key)) is None else f"`{value}`"
            lines.append(f"| `{key}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every verb with its arguments and options, in the order of ``--help``."""
    lines = [
        "# Commands",
        "",
        "Data goes to stdout, progress and messages to stderr. With `--json`, stdout holds JSON and nothing else, on",
        'failure too (`{"error": {"code": ...}}`). Exit codes: [errors](errors.md).',
    ]
    group: Any = get_command(app)
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        for verb, each in {f"{name} {sub}": one for sub, one in inner.items()}.items() if inner else [(name, command)]:
            lines += ["", f"## tastetwin {verb}", "", *_help_lines(each), "", *_parameter_table(each)]
    return "\n".join(lines) + "\n"


def _help_lines(command: Any) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    return "\n\n".join(paragraphs).split("\n")


def _parameter_table(command: Any) -> list[str]:
    rows = []
    for each in command.params:
        if each.name == "help":
            continue
        option = each.param_type_name == "option"
        shown = ", ".join(each.opts) if option else (each.metavar or each.name).upper()
        rows.append(f"| `{shown.replace('|', ' or ')}` | {_default(each)} | {each.help} |")
    return ["| | default | |", "|---|---|---|", *rows]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    return "" if parameter.default in (None, False) else f"`{parameter.default}`"


def tables_page() -> str:
    """Every table's grain, columns and types."""
    lines = [
        "# Tables",
        "",
        "Times are UTC, in microseconds. `tastetwin sql` shows those with a question below as views, of the published",
        "run, but for `runs`, `funnel`, `health` and `quality`, which tell of all runs; these four and `favors` are",
        "*ready views*, made when asked. [The planner's desk](../how-to/planner.md) shows how to ask.",
    ]
    for title, module, name in TABLES:
        table: pa.Schema = getattr(module, name)
        lines += ["", f"## {title}", "", grain(module, name), "", "| column | type | null |", "|---|---|---|"]
        lines += [f"| `{f.name}` | `{_type(f.type)}` | {'yes' if f.nullable else 'no'} |" for f in table]
        if (view := title.strip("`")) in views.QUESTIONS:
            question, sql = views.QUESTIONS[view]
            lines += ["", question, "", "```sql", sql, "```"]
    return "\n".join(lines) + "\n"


def _type(kind: pa.DataType) -> str:
    return str(kind).replace("element: ", "").replace("item: ", "").replace(" not null", "")


def grain(module: ModuleType, name: str) -> str:
    """The sentence below a schema in its module."""
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    for here, below in itertools.pairwise(body):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name) and here.target.id == name:
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            text = " ".join(str(below.value.value).split())
            said = text.partition(": ")[2].replace("``", "`")
            return said[0].upper() + said[1:]
    raise LookupError(name)


if __name__ == "__main__":
    for file_name, text in pages().items():
        FOLDER.joinpath(file_name).write_text(text, encoding="utf-8")
