"""The product in memory: a first day that learns in full, and next days that carry on, through the product's functions.

What differs from the daily job: nothing is stored, the vocabulary stays that of the first day, and so does the fit that
turns percentiles into chances.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from attacks.figures import Doubles, Ints, Mask
from tastetwin.analysis.chance import Chance, fit_chance
from tastetwin.analysis.evidence import Evidence, EvidenceRules, Explainer, count_visitors
from tastetwin.analysis.hubness import draw_bank
from tastetwin.analysis.next_place import Encode, Everybody, next_place_pairs
from tastetwin.analysis.pairs import no_rules
from tastetwin.analysis.standing import standing
from tastetwin.analysis.twins import Twins, find_twins
from tastetwin.config import Config
from tastetwin.evaluation.dataset import Dataset
from tastetwin.features.histories import FIRST_PLACE_ROW, Histories, Vocabulary, joined
from tastetwin.features.holdout import choose_holdout
from tastetwin.features.stage import unlisted_too
from tastetwin.features.taste import taste_histories
from tastetwin.features.user_favor import group_favors
from tastetwin.features.vocabulary import assign_rows, describe_rows, empty_vocabulary, grow
from tastetwin.model.carry import carry_on
from tastetwin.model.encoder import Encoder
from tastetwin.model.train import train
from tastetwin.schema import PLACE, USER

LIST: Final = 10
"""Twins that a client gets, as ``push`` cuts them."""
HOLDOUT: Final = 0.2
"""Of users, held out of training: enough to measure the chance on in a town of a thousand."""


@dataclass(frozen=True)
class Answers:
    """The lists of a day."""

    histories: Histories
    twins: npt.NDArray[np.int32]
    """[n, LIST] positions; -1 where nobody is left."""
    scores: Doubles
    """[n, LIST] -1 where nobody is left, as far as a score goes."""
    percentiles: Doubles
    """[n, LIST] rounded down, as ``push`` does."""
    chances: Doubles
    """[n, LIST] in per cent with one digit, as ``similar`` shows them; 0 where there was not enough data."""
    explainer: Explainer

    def explain(self, owner: int, twin: int) -> Evidence:
        """Why two users are twins."""
        return self.explainer.explain(*(places_of(self.histories, user) for user in (owner, twin)))


@dataclass(frozen=True)
class Service:
    """What the operator has learned on the first day."""

    vocabulary: Vocabulary
    config: Config
    today: date
    encoder: Encoder
    chance: Chance | None
    noise: float = 0.0
    """Length of the random vector that is added to everybody's, drawn anew whenever their history changes."""

    def answers(self, histories: Histories, hidden: Ints | None = None, rules: EvidenceRules | None = None) -> Answers:
        """Everybody's list on a day with these histories; users ``hidden`` are learned from and shown to nobody."""
        vectors = self._vectors(histories)
        found = standing(histories, self.vocabulary, self.config.lists, self.today)
        may_be_shown = found.may_be_shown.copy()
        may_be_shown[[] if hidden is None else hidden] = False
        twins = find_twins(vectors, self.config.analyze, found.labels, may_be_shown, lists=self.config.lists)
        near = twins.neighbours[:, :LIST]
        scores = np.where(near >= 0, twins.scores[:, :LIST], np.float32(-1))
        percentiles = twins.scale.percentile(scores)
        chances = np.zeros(near.shape)
        if self.chance is not None:
            chances = np.round(100.0 * self.chance.of(percentiles, histories.lengths()[near]), 1)
        explainer = Explainer(self.vocabulary, count_visitors(histories, self.vocabulary), rules)
        return Answers(
            histories, near, scores.astype(np.float64), np.floor(percentiles).astype(np.float64), chances, explainer
        )

    def _vectors(self, histories: Histories) -> npt.NDArray[np.float32]:
        learners = histories.select(np.flatnonzero(~held_out(histories, self.config)))
        trained = carry_on(self.encoder, learners, self.vocabulary, self.config.train)
        return blurred(trained.encode(histories, self.config.train.max_length), histories, self.noise)


def open_service(histories: Histories, vocabulary: Vocabulary, config: Config, today: date) -> Service:
    """Learn in full."""
    aside = held_out(histories, config)
    trained = train(histories, vocabulary, config.train, np.flatnonzero(aside))
    vectors = trained.encode(histories, config.train.max_length)
    twins = find_twins(vectors, config.analyze, lists=config.lists)

    def encode(before: Histories) -> npt.NDArray[np.float32]:
        return trained.encode(before, config.train.max_length)

    chance = measure_chance(histories, vocabulary, np.flatnonzero(aside), encode, vectors, twins, config)
    return Service(vocabulary, config, today, trained.encoder, chance)


def measure_chance(
    histories: Histories,
    vocabulary: Vocabulary,
    users: Ints,
    encode: Encode,
    vectors: npt.NDArray[np.float32],
    twins: Twins,
    config: Config,
) -> Chance | None:
    """As the daily job measures it."""
    seed, everybody = config.analyze.seed, np.arange(histories.n_users)
    town = Everybody(
        vectors,
        everybody,
        everybody,
        draw_bank(everybody, config.analyze.csls_bank, seed),
        config.analyze.csls_neighbours,
        twins.densities,
        twins.scale,
        no_rules(histories.n_users),
    )
    pairs = next_place_pairs(histories, vocabulary, users, encode, town, seed)
    return fit_chance(pairs, seed)


def held_out(histories: Histories, config: Config) -> Mask:
    """[n_users] whom training does not see."""
    rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT})
    return choose_holdout(histories, rules, rules.seed)


def blurred(vectors: npt.NDArray[np.float32], histories: Histories, noise: float) -> npt.NDArray[np.float32]:
    """[n, dim] unit vectors, each with its own noise; the same history has the same noise on every day."""
    if not noise:
        return vectors
    dim = vectors.shape[1]
    drawn = np.stack(
        [
            np.random.default_rng(np.append(np.sort(places_of(histories, user)), dim)).standard_normal(dim)
            for user in range(histories.n_users)
        ]
    )
    mixed = vectors + noise / np.sqrt(dim) * drawn
    return np.ascontiguousarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), np.float32)


def material(dataset: Dataset, config: Config) -> tuple[Histories, Vocabulary]:
    """The histories of a source as the daily job reads them, of those who get a list, and their vocabulary."""
    known = describe_rows(dataset.vocabulary).slice(FIRST_PLACE_ROW)
    visited = dataset.favors.group_by("place").aggregate([(USER, "count_distinct")]).sort_by("place")
    visitors = pa.table({PLACE: visited.column("place"), "visitors": visited.column(f"{USER}_count_distinct")})
    vocabulary = grow(empty_vocabulary(), known, visitors.combine_chunks(), config.features.min_visitors)
    rows = assign_rows(vocabulary, unlisted_too(known, visitors.column(PLACE)))
    everybody = taste_histories(group_favors(dataset.favors), rows)[0]
    return everybody.select(np.flatnonzero(everybody.lengths() >= config.features.min_favors)), vocabulary


def places_of(histories: Histories, user: int) -> npt.NDArray[np.int32]:
    """Vocabulary rows of a user."""
    return histories.places[histories.offsets[user] : histories.offsets[user + 1]]


def without_favors(histories: Histories, users: Ints, places: Ints) -> Histories:
    """The histories less one place of each of these users."""
    wanted = np.ones(len(histories.places), bool)
    for user, place in zip(users, places, strict=True):
        start = histories.offsets[user]
        wanted[start + np.flatnonzero(places_of(histories, user) == place)] = False
    return histories.filter(wanted)


def with_accounts(histories: Histories, accounts: list[tuple[Ints, Ints]]) -> Histories:
    """The histories and, behind them, made-up accounts of (places, visits), all of the last day."""
    lengths = [len(places) for places, _ in accounts]
    places, visits = (np.concatenate([account[at] for account in accounts]) for at in (0, 1))
    made_up = Histories(
        np.array([f"~{number:06d}" for number in range(len(accounts))], object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        places.astype(np.int32),
        visits.astype(np.float32),
        np.full(len(places), np.nan, np.float32),
        np.full(len(places), histories.days.max(), np.int32),
    )
    return joined(histories, made_up)
