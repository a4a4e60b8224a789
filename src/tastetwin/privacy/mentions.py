"""Whether a text speaks of somebody of whom only the hash of the id is known.

There is nothing to search for, so everything in the text that could be an id is hashed and looked up: the whole text,
words and a few words in a row, columns between commas, whatever lies between two quotes, each also with JSON's escapes
resolved. An id is found where a reader would take it for one; not as a part of a longer word, so that forgetting ``u1``
does not touch ``u10``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from tastetwin.privacy.opt_out import OptOuts, name_of

LONGEST: Final = 256
"""Characters of the longest id."""
_WORD: Final = re.compile(r"""[^\s,;:|=&<>(){}\[\]"']+""")
_COLUMN: Final = re.compile(r"[^,;|\t\r\n]+")
_UNREADABLE: Final = "\N{REPLACEMENT CHARACTER}"
_ENDS: Final = ".!?\\"
_ESCAPES: Final = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')
_IN_A_ROW: Final = 4
"""Words of an id that stands between neither quotes nor commas."""
_QUOTES: Final = 8
"""Quotes after an opening one that may be the closing one: a quote within an id, unescaped, makes it not the next."""


def mentions(text: str, people: OptOuts) -> bool:
    """Whether one of these people is spoken of; takes microseconds per letter, so texts should be few."""
    if not people.names:
        return False
    texts = {text, _ESCAPES.sub(lambda found: str(json.loads(f'"{found[0]}"')), text)}
    # What no UTF-8 decodes to is no letter: it may stand between an id and another word, or in the middle of an id.
    texts |= {each.replace(_UNREADABLE, instead) for each in texts for instead in (" ", "")}
    return any(
        len(each) <= LONGEST and name_of(each) in people.names
        for version in texts
        for candidate in _candidates(version)
        if (each := candidate.strip())
    )


def words_of(value: Any) -> Iterator[str]:
    """The words of a JSON value, names of fields included, and those of its texts that may be an id as a whole."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for each in value:
            yield from words_of(each)
        return
    text = str(value)
    yield from (word.strip(_ENDS) for word in _WORD.findall(text))
    if len(text) <= LONGEST:
        yield text.strip()


def _candidates(text: str) -> Iterator[str]:
    yield text
    words = list(_WORD.finditer(text))
    for place, word in enumerate(words):
        yield word[0].strip(_ENDS)
        yield from (text[word.start() : last.end()] for last in words[place : place + _IN_A_ROW])
    yield from _COLUMN.findall(text)
    quotes = [at for at, letter in enumerate(text) if letter == '"']
    for place, start in enumerate(quotes):
        for end in (*quotes[place + 1 : place + 1 + _QUOTES], len(text)):
            if end - start <= LONGEST + 1:
                yield text[start + 1 : end]
