"""Whether a text speaks of somebody of whom only the hash of the id is known.

There is nothing to search for, so everything in the text that could be an id is hashed and looked up: the whole text,
words, columns between commas, whatever lies between two quotes, each also with JSON's escapes resolved. An id is found
where a reader would take it for one; not as a part of a longer word, so that forgetting ``u1`` does not touch ``u10``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Final

from tastetwin.privacy.opt_out import OptOuts, name_of

LONGEST: Final = 256
"""Characters of the longest id."""
_WORD: Final = re.compile(r"""[^\s,;:|=&<>(){}\[\]"']+""")
_COLUMN: Final = re.compile(r"[^,;|\t\r\n]+")
_ENDS: Final = ".!?\\"
_ESCAPES: Final = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')
_QUOTES: Final = 8
"""Quotes after an opening one that may be the closing one: a quote within an id, unescaped, makes it not the next."""


def mentions(text: str, people: OptOuts) -> bool:
    """Whether one of these people is spoken of; ``people`` are few and texts are short."""
    texts = {text, _ESCAPES.sub(_unescaped, text)} if people.names else ()
    return any(
        len(each) <= LONGEST and _name(each) in people.names
        for version in texts
        for candidate in _candidates(version)
        if (each := candidate.strip())
    )


_name: Final = functools.lru_cache(maxsize=1 << 16)(name_of)


def _unescaped(found: re.Match[str]) -> str:
    return str(json.loads(f'"{found[0]}"'))


def _candidates(text: str) -> Iterator[str]:
    yield text
    for word in _WORD.findall(text):
        yield from (word, word.strip(_ENDS))
    yield from _COLUMN.findall(text)
    quotes = [at for at, letter in enumerate(text) if letter == '"']
    for place, start in enumerate(quotes):
        for end in (*quotes[place + 1 : place + 1 + _QUOTES], len(text)):
            if end - start <= LONGEST + 1:
                yield text[start + 1 : end]
