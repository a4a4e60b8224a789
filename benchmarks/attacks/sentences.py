"""Every sentence of every list of a day: nothing named that few favored, nothing sensitive, nothing else at all.

What may be named is counted here from the favors themselves, without the code that makes the sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from attacks.service import Answers, places_of
from tastetwin.analysis.evidence import K_ANONYMITY
from tastetwin.analysis.sentences import NOTHING
from tastetwin.features.histories import Histories, Vocabulary

_FORMS: Final = (
    re.compile(r"Both favor places of (?:category|categories) (?P<categories>.+?)(?:, and area (?P<area>.+))?\."),
    re.compile(r"Both favor places in area (?P<area>.+)\."),
    re.compile(r"Both favor (?P<places>.+)\."),
)
"""All that a sentence may be, names aside: so no time has a place in it."""


def sentences(answers: Answers) -> Iterator[tuple[int, int, str]]:
    """(owner, twin, sentence) of every entry of every list."""
    for owner, at in np.argwhere(answers.twins >= 0).tolist():
        twin = int(answers.twins[owner, at])
        yield owner, twin, answers.explain(owner, twin).sentence


def nameable(
    histories: Histories, vocabulary: Vocabulary, sensitive: frozenset[int], k: int = K_ANONYMITY
) -> dict[str, frozenset[str]]:
    """Places, categories and areas that at least ``k`` distinct users favored and that are not sensitive."""
    visitors: dict[tuple[str, str], set[int]] = {}
    touchy: set[str] = set()
    for user in range(histories.n_users):
        for row in places_of(histories, user):
            codes = categories_of(vocabulary, int(row))
            place = str(vocabulary.place_ids[row])
            if codes & sensitive:
                touchy.add(place)
            keys = [("places", place), *(("categories", str(code)) for code in codes - sensitive)]
            if vocabulary.regions[row] >= 0:
                keys.append(("area", str(vocabulary.region_codes[vocabulary.regions[row]])))
            for key in keys if not vocabulary.is_group[row] else keys[1:]:
                visitors.setdefault(key, set()).add(user)
    known = {key for key, users in visitors.items() if len(users) >= k} - {("places", place) for place in touchy}
    return {kind: frozenset(name for of, name in known if of == kind) for kind in ("places", "categories", "area")}


def categories_of(vocabulary: Vocabulary, row: int) -> set[int]:
    """Codes of a row's categories."""
    lot = vocabulary.categories[vocabulary.category_offsets[row] : vocabulary.category_offsets[row + 1]]
    return {int(code) for code in vocabulary.category_codes[lot]}


def common_categories(histories: Histories, vocabulary: Vocabulary, n: int) -> frozenset[int]:
    """The ``n`` most favored categories: called sensitive, there is most to be kept silent."""
    codes = [code for row in histories.places for code in categories_of(vocabulary, int(row))]
    known, counts = np.unique(codes, return_counts=True)
    return frozenset(known[np.argsort(-counts, kind="stable")[:n]].tolist())


def betrays(sentence: str, allowed: dict[str, frozenset[str]]) -> bool:
    """Whether a sentence says anything that is not allowed."""
    if sentence == NOTHING["en"]:
        return False
    for form in _FORMS:
        found = form.fullmatch(sentence)
        if found and all(
            name in allowed[kind] for kind, text in found.groupdict().items() if text for name in _names(text)
        ):
            return False
    return True


def _names(text: str) -> list[str]:
    """``a, b and c`` taken apart; ids hold neither comma nor blank."""
    return re.split(r", | and ", text)
