"""How deep a JSON document nests, seen from its bytes before anything parses it."""

from __future__ import annotations

import re
from typing import Final

from tastetwin.errors import UsageError

MAX_DEPTH: Final = 16
_KEPT: Final = b'"[]{}'
_DROPPED: Final = bytes(set(range(256)) - set(_KEPT))
_PAIRS: Final = bytes.maketrans(b"[{]}", b"(())")
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
"""One that never ends goes to the end: a search that failed there would begin again at every quote."""


def check_depth(body: bytes, limit: int = MAX_DEPTH) -> None:
    """See that lists and objects lie at most ``limit`` deep. Whether it is JSON at all is the parser's to say.

    Raises:
        UsageError: HTTP-DEPTH.
    """
    if body.count(b"[") + body.count(b"{") > limit and _deeper(_brackets(body), limit):
        raise UsageError(
            "HTTP-DEPTH",
            place="body",
            value="",
            rule=f"lists and objects at most {limit} deep",
            fix="send what the route's documentation shows",
        )


def _brackets(body: bytes) -> bytes:
    """Opening and closing brackets outside of strings, as ``(`` and ``)``."""
    if b"\\" in body:
        body = _STRING.sub(b"", body)
    # Without escapes, strings without brackets are now two quotes; taking two neighbours away leaves the others paired.
    left = body.translate(None, _DROPPED).replace(b'""', b"")
    return _STRING.sub(b"", left).translate(_PAIRS, b'"')


def _deeper(brackets: bytes, limit: int) -> bool:
    """Whether pairs are left after the innermost ones were taken out so many times, or a heap without partners.

    A few of those are no depth: the parser refuses them.
    """
    for _ in range(limit):
        brackets = brackets.replace(b"()", b"")
    return b"()" in brackets or len(brackets) > limit
