"""The synthetic town itself: who lives where, who likes what, and which favors follow from that.

P(place | user) is proportional to popularity x exp(taste strength x taste of the place for a group drawn from the
user's mixture) x a home factor: a favor falls into the home region with a stated probability, else into another region,
a near one rather than a far one. Group, region and place are drawn one after the other by inverse CDF.

Randomness comes in independent streams keyed by (seed, what, day, block) through ``numpy.random.SeedSequence``: a block
of users is the same whether it is made alone, first or last, and however many users the town has.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.errors import UsageError
from tastetwin.sources.synthetic_text import MAX_PLACES, MAX_USERS, SECONDS_PER_DAY

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Taste = npt.NDArray[np.float32]

BLOCK_USERS: Final = 4096
"""Users whose events are made at a time. Part of the format: another value would make another town."""

USER_TASTE_CONCENTRATION: Final = 0.1
"""Dirichlet parameter: one or two groups dominate a user's mixture."""
PLACE_TASTE_CONCENTRATION: Final = 0.1
CATEGORY_CONCENTRATION: Final = 0.15
CATEGORIES_PER_GROUP: Final = 4
ZIPF_EXPONENT: Final = 0.8
ACTIVITY_SIGMA: Final = 1.1
MAX_FAVORS: Final = 2000
LONELY_SHARE: Final = 0.02
"""Share of the first day's places that exactly one user ever favors."""
DAILY_GROWTH: Final = 0.005
"""New users and new places per further day, as a share of the first day's."""


@dataclass(frozen=True)
class TownConfig:
    """What town to make; the same values give the same bytes with the same numpy release."""

    users: int = 2000
    """Users on the first day, 1 .. 80,000,000."""
    places: int | None = None
    """Places on the first day; by default half as many as users, 200 to 1,000,000."""
    regions: int | None = None
    """By default one per 125 places, 4 to 1,000."""
    groups: int = 12
    """Dimensions of true taste, 2 .. 64."""
    mean_favors: float = 25.0
    """Favors per user on the first day, 1 .. 500 (long-tailed, from 1 to 2,000)."""
    like_share: float = 0.3
    """Share of favors given as likes; the others are reviews."""
    home_share: float = 0.75
    """Probability that a favor falls into the user's home region."""
    taste_strength: float = 5.0
    """0: taste plays no role; at 5, a place wholly of the drawn group is exp(5) = 148 times likelier than one wholly of
    another. At the default, linear baselines find disjoint twins about as often as in real data."""
    dirt_share: float = 0.02
    """Share of lines that are spoilt."""
    days: int = 180
    """Days over which the first day's events are spread."""
    until: date = date(2026, 6, 30)
    """The last of those days, the logical date of the town's first folder."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Raise UsageError (TOWN-CONFIG) naming every value out of range."""
        rules = {
            "users": (1, MAX_USERS // 2),
            "groups": (2, 64),
            "mean_favors": (1, 500),
            "like_share": (0, 1),
            "home_share": (0, 1),
            "taste_strength": (0, 20),
            "dirt_share": (0, 1),
            "days": (1, 36_500),
            "seed": (0, 2**63),
            "n_places": (20, MAX_PLACES // 2),
            "n_regions": (1, min(4000, self.n_places // 2)),
        }
        wrong = {name: limits for name, limits in rules.items() if not limits[0] <= getattr(self, name) <= limits[1]}
        if wrong:
            raise UsageError(
                "TOWN-CONFIG",
                place=", ".join(name.removeprefix("n_") for name in wrong),
                value=", ".join(str(getattr(self, name)) for name in wrong),
                rule="allowed: " + ", ".join(f"{low} to {high}" for low, high in wrong.values()),
                fix="give a size within those",
            )

    @property
    def n_places(self) -> int:
        """Places on the first day."""
        return self.places if self.places is not None else int(np.clip(self.users // 2, 200, 1_000_000))

    @property
    def n_regions(self) -> int:
        """Regions of the town."""
        return self.regions if self.regions is not None else int(np.clip(self.n_places // 125, 4, 1000))

    @property
    def new_users(self) -> int:
        """Users who come on each further day."""
        return max(1, int(self.users * DAILY_GROWTH))

    @property
    def new_places(self) -> int:
        """Places that open on each further day."""
        return max(1, int(self.n_places * DAILY_GROWTH))

    def population(self, day: int) -> int:
        """Users on the given day; 0 is the first."""
        return self.users + day * self.new_users


class Stream(IntEnum):
    """What a stream of random numbers is for; the value is part of its key."""

    REGIONS = 0
    PLACES = 1
    USERS = 2
    EVENTS = 3
    DIRT = 4
    CATEGORIES = 5


def stream(config: TownConfig, what: Stream, *part: int) -> np.random.Generator:
    """The random numbers of one part of the town, independent of every other part's."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(int(what), *part)))


class Choices:
    """Many discrete distributions, laid one after the other, sampled together by inverse CDF."""

    def __init__(self, weights: Floats, ends: Ints) -> None:
        """Distribution s owns ``weights[ends[s - 1]:ends[s]]``, of which at least one must be positive."""
        starts = np.concatenate([[0], ends[:-1]])
        total = np.concatenate([[0.0], np.cumsum(weights)])
        sizes = ends - starts
        share = (total[1:] - np.repeat(total[starts], sizes)) / np.repeat(total[ends] - total[starts], sizes)
        self._cumulative = share + np.repeat(np.arange(len(ends)), sizes)

    def draw(self, which: Ints, rng: np.random.Generator) -> Ints:
        """int64 [n]: for each distribution in ``which``, a position drawn from it, counted over all distributions."""
        # Kept below 1 by more than the rounding of the sum, so that a draw never falls into the next distribution.
        chance = rng.random(len(which)) * (1 - 2.0**-30)
        return np.searchsorted(self._cumulative, which + chance, side="right")


def _equal_ends(rows: int, width: int) -> Ints:
    return np.arange(1, rows + 1) * width


@dataclass(frozen=True)
class Regions:
    """Where the town's regions lie and how people travel between them."""

    lat: Floats
    lon: Floats
    sizes: Floats
    """[n_regions] relative numbers of places and of people."""
    travel: Choices
    """One distribution over regions per home region."""


def make_regions(config: TownConfig) -> Regions:
    """Regions of very different sizes, scattered over about a degree."""
    rng, n = stream(config, Stream.REGIONS), config.n_regions
    lat, lon = 37.5 + 0.5 * rng.standard_normal(n), 127.0 + 0.5 * rng.standard_normal(n)
    sizes = np.arange(1, n + 1, dtype=np.float64) ** -0.5
    distance = np.hypot(lat[:, None] - lat, lon[:, None] - lon)
    away = sizes * np.exp(-distance / 0.3)
    np.fill_diagonal(away, 0)
    travel = np.eye(n)
    if n > 1:
        travel = config.home_share * travel + (1 - config.home_share) * away / away.sum(axis=1, keepdims=True)
    return Regions(lat, lon, sizes, Choices(travel.ravel(), _equal_ends(n, n)))


@dataclass(frozen=True)
class Catalogue:
    """The places open on one day; every array has one row per place, in the order in which they opened."""

    taste: Taste
    """float32 [n_places, groups]: how much of each group's taste a place meets; rows sum to 1."""
    regions: Ints
    popularity: Floats
    """Zipf weights; 0 for the places that are kept for one user each."""
    categories: Ints
    """int64 [n_places, 3]: category indices, -1 where there is no further one."""
    lat: Floats
    lon: Floats

    def __len__(self) -> int:
        return len(self.regions)


def make_catalogue(config: TownConfig, regions: Regions, day: int) -> Catalogue:
    """All places open on ``day``: the first day's and those opened since."""
    batches = [_places_of_day(config, regions, opened) for opened in range(day + 1)]
    names = ("taste", "regions", "popularity", "categories", "lat", "lon")
    return Catalogue(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))


def _places_of_day(config: TownConfig, regions: Regions, day: int) -> Catalogue:
    rng = stream(config, Stream.PLACES, day)
    n = config.new_places if day else config.n_places
    taste = _mixtures(rng, n, config.groups, PLACE_TASTE_CONCENTRATION)
    where = rng.choice(config.n_regions, size=n, p=regions.sizes / regions.sizes.sum())
    ranks = rng.integers(1, config.n_places + 1, size=n) if day else 1 + rng.permutation(n)
    popularity = ranks.astype(np.float64) ** -ZIPF_EXPONENT
    if day == 0:
        where[: config.n_regions] = np.arange(config.n_regions)  # no region without a place
        popularity[n - lonely_places(config) :] = 0
    return Catalogue(
        taste,
        where,
        popularity,
        _categories(config, taste.argmax(axis=1), rng),
        regions.lat[where] + 0.02 * rng.standard_normal(n),
        regions.lon[where] + 0.02 * rng.standard_normal(n),
    )


def lonely_places(config: TownConfig) -> int:
    """Places, the last ones of the first day, that one user each favors once, and nobody else."""
    return min(int(config.n_places * LONELY_SHARE), config.users)


def _mixtures(rng: np.random.Generator, n: int, groups: int, concentration: float) -> Taste:
    """float32 [n, groups]: symmetric Dirichlet draws."""
    gammas = rng.standard_gamma(concentration, (n, groups)) + 1e-12
    mixtures: Taste = (gammas / gammas.sum(axis=1, keepdims=True)).astype(np.float32)
    return mixtures


def _categories(config: TownConfig, groups: Ints, rng: np.random.Generator) -> Ints:
    """int64 [n, 3]: one to three, from the group's preferences; groups share some, so that they do not tell all."""
    n_categories = config.groups * CATEGORIES_PER_GROUP
    preferences = _mixtures(
        stream(config, Stream.CATEGORIES), config.groups, n_categories, CATEGORY_CONCENTRATION
    ).astype(np.float64)
    choices = Choices(preferences.ravel(), _equal_ends(config.groups, n_categories))
    drawn = np.stack([choices.draw(groups, rng) % n_categories for _ in range(3)], axis=1)
    listed = rng.random((len(groups), 3)) < [1.0, 0.5, 0.2]
    repeated = np.stack(
        [np.zeros(len(groups), bool), drawn[:, 1] == drawn[:, 0], (drawn[:, :2] == drawn[:, 2:]).any(axis=1)], axis=1
    )
    return np.where(listed & ~repeated, drawn, -1)


@dataclass(frozen=True)
class Residents:
    """One block of users, alive on one day."""

    first: int
    """Position in the town of the block's first user."""
    taste: Taste
    """float32 [n, groups]: the user's mixture of groups; rows sum to 1."""
    homes: Ints
    favors: Ints
    """Planted activity: favors over the first day's range of ``days``."""
    bias: Floats
    """How much higher than others the user rates, in stars."""

    def __len__(self) -> int:
        return len(self.homes)


@dataclass(frozen=True)
class Events:
    """The favors of one block of users, in the order of time; one row each."""

    users: Ints
    places: Ints
    seconds: Ints
    """Since 1970-01-01."""
    half_stars: Ints
    """Rating x 2, 1 .. 10."""
    is_like: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.users)


class World:
    """The town on one day: its regions, its places, and a source of its users' events.

    Memory: about 8 x groups bytes per place, and some tens of MB for a block of users.
    """

    def __init__(self, config: TownConfig, day: int = 0) -> None:
        """``day`` 0 is the whole past up to ``config.until``; 1, 2 ... are the single days after it."""
        self.config, self.day = config, day
        self.regions = make_regions(config)
        self.catalogue = make_catalogue(config, self.regions, day)
        self._homes = Choices(self.regions.sizes, np.array([config.n_regions]))
        self._by_region = np.argsort(self.catalogue.regions, kind="stable")
        self._choices = [self._place_choices(group) for group in range(config.groups)]

    def _place_choices(self, group: int) -> Choices:
        """One distribution over places per region, for favors of one taste group."""
        affinity = np.exp(self.config.taste_strength * self.catalogue.taste[self._by_region, group].astype(np.float64))
        sizes = np.bincount(self.catalogue.regions, minlength=self.config.n_regions)
        return Choices(self.catalogue.popularity[self._by_region] * affinity, np.cumsum(sizes))

    @property
    def date(self) -> date:
        """The logical date: the last day that has events."""
        return self.config.until + timedelta(days=self.day)

    @property
    def blocks(self) -> int:
        """Blocks of users."""
        return -(-self.config.population(self.day) // BLOCK_USERS)

    def residents(self, block: int) -> Residents:
        """The block's users who live in the town by this day."""
        config, first = self.config, block * BLOCK_USERS
        rng = stream(config, Stream.USERS, block)
        alive = slice(config.population(self.day) - first)
        taste = _mixtures(rng, BLOCK_USERS, config.groups, USER_TASTE_CONCENTRATION)
        homes = self._homes.draw(np.zeros(BLOCK_USERS, np.int64), rng)
        log_mean = np.log(config.mean_favors) - ACTIVITY_SIGMA**2 / 2
        favors = np.rint(rng.lognormal(log_mean, ACTIVITY_SIGMA, BLOCK_USERS)).astype(np.int64).clip(1, MAX_FAVORS)
        bias = 0.5 * rng.standard_normal(BLOCK_USERS)
        return Residents(first, taste[alive], homes[alive], favors[alive], bias[alive])

    def events(self, block: int) -> tuple[Residents, Events]:
        """The block's users and their events, oldest first; those of day 0 lie within ``days``, others on one day."""
        people = self.residents(block)
        rng = stream(self.config, Stream.EVENTS, self.day, block)
        counts = self._counts(people, rng)
        who = np.repeat(np.arange(len(people)), counts)
        groups, places = self._visits(people, who, rng)
        if self.day == 0:
            self._add_lonely(people.first, places, np.cumsum(counts) - counts)
        seconds = self._seconds(len(who), rng)
        match = self.catalogue.taste[places, groups]
        stars = 3.2 + people.bias[who] + match + 0.7 * rng.standard_normal(len(who))
        half_stars = np.rint(2 * stars).astype(np.int64).clip(1, 10)
        is_like = rng.random(len(who)) < self.config.like_share
        order = np.argsort(seconds, kind="stable")
        columns: tuple[npt.NDArray[Any], ...] = (people.first + who, places, seconds, half_stars, is_like)
        return people, Events(*(column[order] for column in columns))

    def _counts(self, people: Residents, rng: np.random.Generator) -> Ints:
        """int64 [n]: how many events each user has; who is new in town today has at least one."""
        if self.day == 0:
            return people.favors
        counts = rng.poisson(people.favors / self.config.days)
        is_new = people.first + np.arange(len(people)) >= self.config.population(self.day - 1)
        return np.maximum(counts, is_new)

    def _visits(self, people: Residents, who: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Two int64 [n]: the taste group behind each event, and its place."""
        n_groups, n_regions = self.config.groups, self.config.n_regions
        mixtures = Choices(people.taste.ravel().astype(np.float64), _equal_ends(len(people), n_groups))
        groups = mixtures.draw(who, rng) % n_groups
        where = self.regions.travel.draw(people.homes[who], rng) % n_regions
        places = np.empty(len(who), np.int64)
        for group in range(n_groups):
            rows = np.flatnonzero(groups == group)
            places[rows] = self._by_region[self._choices[group].draw(where[rows], rng)]
        return groups, places

    def _add_lonely(self, first_user: int, places: Ints, first_events: Ints) -> None:
        """Send the first event of the town's first users to a place of their own; changes ``places``."""
        lonely = lonely_places(self.config)
        own = np.arange(first_user, min(lonely, first_user + len(first_events)))
        places[first_events[own - first_user]] = self.config.n_places - lonely + own

    def _seconds(self, n: int, rng: np.random.Generator) -> Ints:
        """int64 [n]: times, uniform over the days of this folder."""
        days = 1 if self.day else self.config.days
        end = ((self.date - date(1970, 1, 1)).days + 1) * SECONDS_PER_DAY
        return rng.integers(end - days * SECONDS_PER_DAY, end, size=n)
