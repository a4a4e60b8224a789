"""Why two users are twins, said so that it betrays nobody: only what many people share is ever named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.index import Ints
from tastetwin.analysis.sentences import Language, sentence
from tastetwin.features.histories import Histories, Vocabulary

Rows = npt.NDArray[np.int32]

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


@dataclass(frozen=True)
class Shared:
    """One thing two users share."""

    key: str
    """Place id, category code or region code."""
    weight: float
    """Higher = says more about these two: rarity in nats; for categories and regions times the overlap."""
    visitors: int
    """Distinct users who favored it."""


@dataclass(frozen=True)
class Evidence:
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

        Args:
            vocabulary: of the bundle.
            visitors: see ``count_visitors``.
            rules: what may be said.
            names: names of places by id, for the sentence; ids stand in for missing ones.
            language: of the sentence.
        """
        self._language = language
        self._vocabulary, self._visitors, self._names = vocabulary, visitors, names or {}
        self._rules = rules or EvidenceRules()
        k, codes = self._rules.k_anonymity, vocabulary.category_codes
        harmless = ~np.isin(codes, list(self._rules.sensitive_categories))
        self._category_ok = (visitors.categories >= k) & harmless
        self._region_ok = visitors.regions >= k
        self._place_ok = (visitors.places >= k) & ~vocabulary.is_group & self._all_harmless(harmless)

    def _all_harmless(self, harmless: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        owner, categories = _categories_of(self._vocabulary, np.arange(self._vocabulary.n_rows, dtype=np.int32))
        return np.asarray(np.bincount(owner[~harmless[categories]], minlength=self._vocabulary.n_rows) == 0)

    def may_name(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """[n_rows], [n_categories], [n_regions] what enough users favored and is not sensitive."""
        return self._place_ok, self._category_ok, self._region_ok

    def explain(self, mine: Rows, theirs: Rows) -> Evidence:
        """What two users share.

        Args:
            mine: vocabulary rows of one user, distinct.
            theirs: of the other.
        """
        places, categories, regions = (
            self._places(mine, theirs),
            self._categories(mine, theirs),
            self._regions(mine, theirs),
        )
        found = Evidence(places, categories, regions, "")
        return replace(found, sentence=self.say(found, self._language))

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

    def _places(self, mine: Rows, theirs: Rows) -> tuple[Shared, ...]:
        both = self.may_be_named(np.intersect1d(mine, theirs))
        return self._heaviest(self._vocabulary.place_ids[both], np.ones(len(both)), self._visitors.places[both])

    def _categories(self, mine: Rows, theirs: Rows) -> tuple[Shared, ...]:
        codes = self._vocabulary.category_codes
        shares = [_shares(_categories_of(self._vocabulary, rows)[1], len(codes)) for rows in (mine, theirs)]
        overlap = np.where(self._category_ok, np.minimum(*shares), 0)
        return self._heaviest(codes[overlap > 0], overlap[overlap > 0], self._visitors.categories[overlap > 0])

    def _regions(self, mine: Rows, theirs: Rows) -> tuple[Shared, ...]:
        codes = self._vocabulary.region_codes
        known = [self._vocabulary.regions[rows] for rows in (mine, theirs)]
        overlap = np.minimum(*(_shares(regions[regions >= 0], len(codes)) for regions in known))
        overlap = np.where(self._region_ok, overlap, 0)
        return self._heaviest(codes[overlap > 0], overlap[overlap > 0], self._visitors.regions[overlap > 0])

    def _heaviest(self, keys: npt.NDArray[Any], overlap: npt.NDArray[np.float64], visitors: Ints) -> tuple[Shared, ...]:
        weights = overlap * np.log(self._visitors.n_users / np.maximum(visitors, 1))
        order = np.argsort(-weights, kind="stable")[: self._rules.most]
        return tuple(Shared(str(keys[i]), float(weights[i]), int(visitors[i])) for i in order)


def _shares(keys: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.float64]:
    counts = np.bincount(keys, minlength=size).astype(np.float64)
    return np.asarray(counts / max(counts.sum(), 1.0))
