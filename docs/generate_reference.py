"""Write the reference pages that follow from the code: ``python docs/generate_reference.py``.

A test holds the pages to the code, so a changed setting, option or table shows in the same change.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import orjson
import pyarrow as pa
from typer.main import get_command

from tastetwin import schema
from tastetwin.analysis import standing
from tastetwin.cli import app
from tastetwin.config import ENV_PREFIX, Config
from tastetwin.delivery import views
from tastetwin.features import user_favor
from tastetwin.serving.app import openapi as app_api
from tastetwin.serving.app.http import ENDPOINTS, PEOPLE_OF_PLACE
from tastetwin.serving.gateway import openapi as gateway_api
from tastetwin.serving.gateway.http import VERSION_HEADER

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
VERSION: Final = VERSION_HEADER.decode()
_LIMITS: Final = {"minimum": "from", "maximum": "to", "minLength": "of length", "maxLength": "to"}
_LENGTHS: Final = {"minItems": "at least", "maxItems": "at most"}
_HTTP: Final = """# HTTP

What [serving](../how-to/serve.md) takes and answers. The same, to try: `/docs` of gateway and app; for programs:
`/openapi.json`. The model backend speaks the [Open Inference Protocol v2](https://github.com/kserve/open-inference-protocol).

Bodies are JSON. A field that is not in a table is refused. Headers of a request:

| header | meaning |
|---|---|
| `authorization: Bearer KEY`, or `x-api-key: KEY` | who asks; an app's client sends its token so |
| `tastetwin-timeout-ms` | how long the caller will wait: nothing is done for them after that |
| `tastetwin-version` | gateway: a version by name, else [by weight](../how-to/serve.md#versions) |
| `x-request-id` | under which all tiers log it, 1 to 64 of `A-Za-z0-9._-`, else one is made; every answer has it |
| `traceparent` | W3C trace context |

`GET /healthz` says that the process lives, `GET /readyz` that it should be sent requests (200, else 503). What is
refused is answered by a [Refusal](#refusal) with one of these statuses; codes: [errors](errors.md#what-servers-answer).

| status | when | ask again? |
|---|---|---|
| 400, 413 | the request is wrong, or too large | no |
| 401, 403 | no known key; the key may not do this | no |
| 404 | no such route, model or version; nobody who may be shown of that id | no |
| 405 | the path takes other methods, which `Allow` names; only for a key that may use one of them | no |
| 409 | there is no room for one more (app) | no |
| 429 | above the key's rate | after `Retry-After` |
| 503 | overloaded, ending, or something behind it is away | after `Retry-After`, later each time |
| 504 | not done in time | yes: everything may be asked twice |""".splitlines()


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    return {"config.md": config_page(), "cli.md": cli_page(), "tables.md": tables_page(), "http.md": http_page()}


def config_page() -> str:
    """Every setting with its default and its sentence."""
    lines = [
        "# Settings",
        "",
        "Nobody needs a file for the first run. A file (`--config settings.yaml`, or `.toml`) wins over the defaults,",
        f"the environment (`{ENV_PREFIX}TRAIN__EPOCHS=3`) over the file; empty is `null` there and in YAML. An",
        "unknown key is an error. What is in force, and where it comes from: `tastetwin config show --origin`.",
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
        if inner and command.params:  # a group that does something by itself
            said = _help_lines(inspect.getdoc(command.callback))
            lines += ["", f"## tastetwin {name}", "", *said, "", *_parameter_table(command)]
        for verb, each in {f"{name} {sub}": one for sub, one in inner.items()}.items() if inner else [(name, command)]:
            lines += ["", f"## tastetwin {verb}", "", *_help_lines(each.help), "", *_parameter_table(each)]
    return "\n".join(lines) + "\n"


def _help_lines(said: str | None) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in (said or "").split("\n\n")]
    return "\n\n".join(paragraphs).split("\n")


def _parameter_table(command: Any) -> list[str]:
    rows = []
    for each in command.params:
        if each.name == "help":
            continue
        option = each.param_type_name == "option"
        shown = ", ".join([*each.opts, *each.secondary_opts]) if option else (each.metavar or each.name).upper()
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


def http_page() -> str:
    """Every route of gateway and app, and every model that they take or give."""
    described = {"Model gateway": gateway_api.describe(), "App": app_api.describe((*ENDPOINTS, PEOPLE_OF_PLACE))}
    lines = [*_HTTP]
    models: dict[str, Any] = {}
    for title, raw in described.items():
        document = orjson.loads(raw)
        own = document["components"]["schemas"]
        assert all(models.get(name, model) == model for name, model in own.items()), "one name, one model"
        models |= own
        lines += ["", f"## {title}"]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                lines += ["", f"### {method.upper()} {path}", "", *_operation_lines(operation, own)]
    lines += ["", "## What is sent and answered"]
    for name, model in sorted((name, model) for name, model in models.items() if "properties" in model):
        lines += ["", f"### {name}", "", *_model_lines(model)]
    return "\n".join(lines) + "\n"


def _operation_lines(operation: Any, models: Any) -> list[str]:
    more, _, scope = operation["description"].partition("Scope: ")
    needed = "with a user's token" if "`me`" in scope else f"scope {scope.rstrip('.')}"
    lines = [f"{operation['summary']} ({needed}). {more}".strip()]
    parameters = [each for each in operation.get("parameters", ()) if each["name"] not in ("model", VERSION)]
    lines += ["", "| | | |", "|---|---|---|"] if parameters else []
    lines += [f"| `{each['name']}` | {each['in']} | {_kind(each['schema'])} |" for each in parameters]
    given = operation["responses"]["200"]["content"]["application/json"]["schema"]
    taken = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    lines += ["", f"{f'Takes {_kind(taken)}, gives' if taken else 'Gives'} {_kind(given)}."]
    examples = models[taken["$ref"].rsplit("/", 1)[1]].get("examples", ()) if taken else ()
    return [*lines, "", "```json", *(orjson.dumps(each).decode() for each in examples), "```"] if examples else lines


def _model_lines(model: Any) -> list[str]:
    lines = [" ".join(model["description"].split()), "", "| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model["properties"].items():
        default = f"`{orjson.dumps(field.get('default')).decode()}`"
        shown = "required" if name in model.get("required", ()) else default
        inner = [field, *field.get("anyOf", ()), field.get("items", {})]
        meaning = next((each["description"] for each in inner if "description" in each), "")
        lines.append(f"| `{name}` | {_kind(field)} | {shown} | {meaning} |")
    return lines


def _kind(schema: Any) -> str:
    """A type of JSON Schema, for people."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        limits = [f", {word} {schema[key]:,}" for key, word in _LENGTHS.items() if key in schema]
        return "".join([f"list of {_kind(schema.get('items', {}))}", *limits])
    limits = [f"{word} {schema[key]:,}" for key, word in _LIMITS.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), *limits])


if __name__ == "__main__":
    for file_name, text in pages().items():
        FOLDER.joinpath(file_name).write_text(text, encoding="utf-8")
