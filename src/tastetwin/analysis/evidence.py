"""Why two users are twins, said so that it betrays nobody: only what many people share is ever named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Ints
from tastetwin.analysis.sentences import Language, sentence
from tastetwin.features.histories import Histories, Vocabulary

Rows = npt.NDArray[np.int32]
Thing = TypeVar("Thing")

_UNKNOWN: Final = -1
"""Region of a place of which none is known."""
K_ANONYMITY: Final = 10


@dataclass(frozen=True)
class Visitors:
    """How many distinct users favored each place, category and region."""

    n_users: int
    places: Ints
    """[n_rows] of the vocabulary."""
    categories: Ints
    """[n_categories]"""
    regions: Ints
    """[n_regions]"""


@dataclass(frozen=True)
class EvidenceRules:
    """What may be said."""

    k_anonymity: int = K_ANONYMITY
    """Distinct users that must have favored a place, category or region before it is named."""
    sensitive_categories: frozenset[int] = frozenset()
    """The source's codes of categories that are never named, nor any place that has one."""
    most: int = 3
    """Places, categories and regions named, at most, each."""


class Shared(NamedTuple):
    """One thing two users share."""

    key: str
    """Place id, category code or region code."""
    weight: float
    """Higher = says more about these two: rarity in nats; for categories and regions times the overlap."""
    visitors: int
    """Distinct users who favored it."""


class Evidence(NamedTuple):
    """Why two users are twins; each tuple the heaviest first, empty where nothing may be named."""

    places: tuple[Shared, ...]
    categories: tuple[Shared, ...]
    regions: tuple[Shared, ...]
    sentence: str


def count_visitors(histories: Histories, vocabulary: Vocabulary) -> Visitors:
    """Distinct users per place, category and region."""
    users = np.repeat(np.arange(histories.n_users), histories.lengths())
    favor, categories = _categories_of(vocabulary, histories.places)
    regions = vocabulary.regions[histories.places]
    known = regions >= 0
    return Visitors(
        histories.n_users,
        np.bincount(histories.places, minlength=vocabulary.n_rows),
        _distinct_users(users[favor], categories, len(vocabulary.category_codes)),
        _distinct_users(users[known], regions[known], len(vocabulary.region_codes)),
    )


def _distinct_users(users: Ints, keys: Rows, size: int) -> Ints:
    # Not np.unique, whose hash table is several times slower than sorting what lies user by user.
    pairs = np.sort(users.astype(np.int64) * max(size, 1) + keys)
    return np.bincount(pairs[np.diff(pairs, prepend=-1) > 0] % max(size, 1), minlength=size)


def _categories_of(vocabulary: Vocabulary, rows: Rows) -> tuple[Ints, Rows]:
    """All categories of the given rows end to end, and which of the rows each belongs to."""
    starts = vocabulary.category_offsets[rows]
    counts = vocabulary.category_offsets[rows + 1] - starts
    owner = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, vocabulary.categories[starts[owner] + within]


class Explainer:
    """Explains pairs of users."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        visitors: Visitors,
        rules: EvidenceRules | None = None,
        names: Mapping[str, str] | None = None,
        language: Language = "en",
    ) -> None:
        """Prepare which places and categories may be named.

        ``names`` are those of places by id, for the sentence; ids stand in for missing ones.
        """
        self._language = language
        self._vocabulary, self._visitors, self._names = vocabulary, visitors, names or {}
        self._rules = rules or EvidenceRules()
        k, codes = self._rules.k_anonymity, vocabulary.category_codes
        harmless = ~np.isin(codes, list(self._rules.sensitive_categories))
        self._category_ok = (visitors.categories >= k) & harmless
        self._region_ok = visitors.regions >= k
        self._place_rarity, self._category_rarity, self._region_rarity = (
            np.log(visitors.n_users / np.maximum(counts, 1)).data
            for counts in (visitors.places, visitors.categories, visitors.regions)
        )
        self._place_ok = (visitors.places >= k) & ~vocabulary.is_group & self._all_harmless(harmless)

        self._may_be_named = self._place_ok.data
        starts = vocabulary.category_offsets
        self._kinds = _Known(lambda row: vocabulary.categories[starts[row] : starts[row + 1]].tolist())
        self._region_of = _Known(lambda row: int(vocabulary.regions[row]))
        ids, categories, regions = vocabulary.place_ids, vocabulary.category_codes, vocabulary.region_codes
        rarity = self._place_rarity  # one that named ``self`` would keep all this until a full collection
        self._named_places = _Known(lambda row: Shared(str(ids[row]), rarity[row], int(visitors.places[row])))
        self._named_categories = _Known(lambda at: (str(categories[at]), int(visitors.categories[at])))
        self._named_regions = _Known(lambda at: (str(regions[at]), int(visitors.regions[at])))

    def _all_harmless(self, harmless: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        owner, categories = _categories_of(self._vocabulary, np.arange(self._vocabulary.n_rows, dtype=np.int32))
        return np.asarray(np.bincount(owner[~harmless[categories]], minlength=self._vocabulary.n_rows) == 0)

    def may_name(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """[n_rows], [n_categories], [n_regions] what enough users favored and is not sensitive."""
        return self._place_ok, self._category_ok, self._region_ok

    def explain(self, mine: Rows, theirs: Rows) -> Evidence:
        """What two users share, by the vocabulary rows of either, distinct."""
        return self.explain_each(mine, [theirs])[0]

    def explain_each(self, mine: Rows, others: Iterable[Rows]) -> list[Evidence]:
        """``explain`` of one user and each of the others.

        In plain Python: of a few dozen places, array kernels would take most of their time to begin.
        """
        me = self._side(mine)
        return [self._explain(me, theirs) for theirs in others]

    def say(self, evidence: Evidence, language: Language) -> str:
        """Evidence in words."""
        named = [self._names.get(place.key, place.key) for place in evidence.places]
        codes, areas = ([shared.key for shared in kind] for kind in (evidence.categories, evidence.regions))
        return sentence(language, named, codes, areas)

    def may_be_named(self, rows: Rows) -> Rows:
        """Those of the places that so many favor that naming one tells nothing of anybody."""
        return rows[self._place_ok[rows]]

    def name(self, row: int) -> str:
        """A place's name, or its id."""
        place = str(self._vocabulary.place_ids[row])
        return self._names.get(place, place)

    def rarest_first(self, rows: Rows) -> Rows:
        """The places in the order in which they say something about who favors them; ties by row."""
        return rows[np.argsort(self._visitors.places[rows], kind="stable")]

    def more_of(self, mine: Rows, theirs: Rows) -> tuple[Shared, ...]:
        """Categories of which a larger share of ``mine`` is than of ``theirs``; ``weight`` is the difference."""
        codes = self._vocabulary.category_codes
        first, second = (_shares(_categories_of(self._vocabulary, rows)[1], len(codes)) for rows in (mine, theirs))
        ahead = np.where(self._category_ok, first - second, 0)
        order = np.argsort(-ahead, kind="stable")[: self._rules.most]
        visitors = self._visitors.categories
        return tuple(Shared(str(codes[at]), float(ahead[at]), int(visitors[at])) for at in order if ahead[at] > 0)

    def _side(self, rows: Rows) -> _Side:
        """The user whose twins are explained."""
        listed = rows.tolist()
        kinds, areas = self._kinds_and_areas(listed)
        return _Side(
            {row for row in listed if self._may_be_named[row]},
            {at: share for at, share in _shared_out(kinds).items() if self._category_ok[at]},
            {at: share for at, share in _shared_out(areas).items() if self._region_ok[at]},
        )

    def _kinds_and_areas(self, listed: list[int]) -> tuple[Counter[int], Counter[int]]:
        """How often each category and each known region is one of the places'."""
        areas = Counter(map(self._region_of.__getitem__, listed))
        areas.pop(_UNKNOWN, None)
        return Counter(chain.from_iterable(map(self._kinds.__getitem__, listed))), areas

    def _explain(self, me: _Side, theirs: Rows) -> Evidence:
        listed = theirs.tolist()
        kinds, areas = self._kinds_and_areas(listed)
        most, named = self._rules.most, self._named_places
        rows = sorted(me.places.intersection(listed), key=lambda row: (-named[row].weight, row))
        places = tuple([named[row] for row in rows[:most]])
        categories = _heaviest(me.categories, kinds, self._category_rarity, self._named_categories, most)
        regions = _heaviest(me.regions, areas, self._region_rarity, self._named_regions, most)
        found = Evidence(places, categories, regions, "")
        return found._replace(sentence=self.say(found, self._language))


class _Known(dict[int, Thing]):
    """What is asked for again and again, made when it is first asked for; at most what the vocabulary holds."""

    def __init__(self, make: Callable[[int], Thing]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, at: int) -> Thing:
        self[at] = made = self._make(at)
        return made


class _Side(NamedTuple):
    """What may be named of a user's history."""

    places: set[int]
    """Rows."""
    categories: dict[int, float]
    """By index: the share of all categories of the history."""
    regions: dict[int, float]


def _shared_out(counts: Counter[int]) -> dict[int, float]:
    total = sum(counts.values())
    return {at: count / total for at, count in counts.items()}


def _heaviest(
    mine: dict[int, float], theirs: Counter[int], rarity: memoryview, named: _Known[tuple[str, int]], most: int
) -> tuple[Shared, ...]:
    """Of what both have: by the smaller share times the rarity, ties by index."""
    total = sum(theirs.values())
    weighted = sorted(
        [(-min(share, theirs[at] / total) * rarity[at], at) for at, share in mine.items() if at in theirs]
    )
    return tuple([Shared(named[at][0], -weight, named[at][1]) for weight, at in weighted[:most]])


def _shares(keys: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.float64]:
    counts = np.bincount(keys, minlength=size).astype(np.float64)
    return np.asarray(counts / max(counts.sum(), 1.0))
