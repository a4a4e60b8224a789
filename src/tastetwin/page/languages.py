"""The languages of the pages. Every text is in ``texts/``, one table a language, all with the same keys and blanks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson

TEXTS: Final[dict[str, dict[str, str]]] = {
    language: orjson.loads((Path(__file__).parent / "texts" / f"{language}.json").read_bytes())
    for language in ("en", "ko")
}


def language_of(accepted: str) -> str:
    """``ko`` where an ``Accept-Language`` header (RFC 9110, 12.5.4) puts Korean before English, else ``en``."""
    ranked: list[tuple[float, str]] = []
    for part in accepted.split(",")[:20]:
        tag, _, parameter = part.strip().partition(";")
        try:
            ranked.append((-float(parameter.strip().removeprefix("q=") or 1), tag.split("-")[0].lower()))
        except ValueError:
            continue
    return next((tag for _, tag in sorted(ranked, key=lambda each: each[0]) if tag in TEXTS), "en")
