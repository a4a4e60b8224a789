"""From values to HTML: the templates, the texts of a language, links, numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tastetwin.evaluation import plots
from tastetwin.evaluation.report import count, percent
from tastetwin.page.atlas import Neighbourhood
from tastetwin.page.charts import Point, place_map
from tastetwin.page.languages import TEXTS, language_of
from tastetwin.page.view import View, Visit

SHOWN: Final = 25
"""Rows of a history that are open at once."""


class Renderer:
    """The templates, read once."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=PackageLoader("tastetwin.page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"count": count, "percent": percent, "day": day}
        self._templates.globals |= {"plots": plots, "place_map": place_map, "SHOWN": SHOWN, "title_of": title_of}

    def page(self, request: Request, template: str, **values: Any) -> str:
        """A page in the language that the address asks for, else the browser."""
        asked = request.query_params.get("lang")
        language = asked if asked in TEXTS else language_of(request.headers.get("accept-language", ""))
        link = _links(asked if asked in TEXTS else None)
        here = {name: value for name, value in request.query_params.items() if name not in ("lang", "done")}
        path = request.scope["raw_path"].decode("latin-1").split("?")[0]
        return self._templates.get_template(template).render(
            t=_texts(language),
            lang=language,
            asked=asked if asked in TEXTS else None,
            link=link,
            user_link=lambda user, **query: link(*_of_user(user), **query),
            pair_link=lambda a, b: link(*_of_pair(a, b)),
            why_link=lambda a, b: link(*_of_pair(a, b), why=1),
            in_language=lambda other: f"{path}?{urlencode({**here, 'lang': other})}",
            path=request.url.path,
            **values,
        )


def _texts(language: str) -> Callable[..., Markup]:
    """A text by its key; what is put into it is escaped, the text itself is ours."""
    return lambda key, **values: Markup(TEXTS[language][key]).format(**values)  # nosec B704  # our text; format escapes the values


def _links(language: str | None) -> Callable[..., str]:
    """Addresses that keep a language somebody chose."""

    def link(path: str, fixed: Mapping[str, str] | None = None, **query: object) -> str:
        asked = {**(fixed or {}), **query, **({"lang": language} if language else {})}
        return f"{path}?{urlencode(asked)}" if asked else path

    return link


def _of_user(user: str) -> tuple[str, dict[str, str]]:
    """Path and query; browsers take ``.`` and ``..`` out of a path, however they are escaped (WHATWG URL)."""
    return ("/users", {"id": user}) if _is_dots(user) else (f"/users/{quote(user, safe='')}", {})


def _of_pair(a: str, b: str) -> tuple[str, dict[str, str]]:
    if _is_dots(a) or _is_dots(b):
        return "/pairs", {"a": a, "b": b}
    return f"/pairs/{quote(a, safe='')}/{quote(b, safe='')}", {}


def _is_dots(user: str) -> bool:
    return user in (".", "..")


def title_of(view: View, neighbourhood: Neighbourhood, t: Callable[..., Markup]) -> str:
    """What a neighbourhood is called: its most telling category and place."""
    categories = [str(t("category_n", code=code)) for code in neighbourhood.categories[:1]]
    named = [*categories, *view.named(neighbourhood)[:1]] or list(neighbourhood.regions[:1])
    return " · ".join(named) or str(t("nothing_named"))


def history_map(visits: Iterable[Visit]) -> list[Point]:
    """The places of one user that have coordinates."""
    return [point for visit in visits for point in _point(visit, "one")]


def pair_map(mine: Mapping[str, Visit], theirs: Mapping[str, Visit]) -> list[Point]:
    """The places of two users; those of both last, so that they lie on top."""
    points = [point for place, visit in mine.items() if place not in theirs for point in _point(visit, "one")]
    points += [point for place, visit in theirs.items() if place not in mine for point in _point(visit, "other")]
    return points + [point for place, visit in mine.items() if place in theirs for point in _point(visit, "both")]


def _point(visit: Visit, kind: str) -> list[Point]:
    place = visit.place
    return [] if place.lat is None or place.lon is None else [Point(place.lat, place.lon, kind, place.name)]


def day(visit: Visit) -> str:
    """The day of the last visit."""
    return "–" if visit.last is None else visit.last.date().isoformat()
