"""Made-up accounts: does a target favor a place? (after Calandrino et al. 2011, "You might also like")

The attacker knows some places of a target, makes one account that has them and the place in question, and one without
it, and reads on the next day what both see of the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import scipy.sparse as sp

from attacks.figures import Doubles, Ints, Trial
from attacks.service import LIST, Answers, Service, places_of, with_accounts, without_favors
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.linear import histories_matrix

LOUD: Final = 30
"""Visits of a made-up account to the place in question: a regular counts for more."""
TARGET_PLACES: Final = (12, 80)
"""Distinct places of a target, least and most: so that the same ones serve for every number of known places."""
RARE: Final = (3, 9)
"""Visitors of a place that nobody may name, and that the model knows."""

_STEPS: Final = np.array([0, 1, 2, 5, 10, 20, 50])

Game = Literal["favored or not", "favored or taken out"]
"""Which places are not favored: others, matched by region and popularity, so that taste tells too; or, in a world where
the target never was there, one that they did favor, so that nothing but the favor itself can tell."""


@dataclass(frozen=True)
class Knowledge:
    """What the attacker knows, and does."""

    places: int | None
    """Known places of the target; None: all but the one in question, and an account at the edge of the rule by which
    doubled accounts never meet."""
    probes: int = 0
    """Accounts with the place in question and two of the known ones each, so that evidence has room to name it; 0: one
    account with all known ones."""
    rare: bool = False
    """Whether the places in question are ``RARE`` ones; ten probes make them places that ten users favor."""

    @property
    def accounts(self) -> int:
        """Made up for a target."""
        return max(1, self.probes) + 1


@dataclass(frozen=True)
class Question:
    """Does this target favor this place?"""

    target: int
    place: int
    favored: bool
    known: Ints


def ask(service: Service, histories: Histories, knowledge: Knowledge, game: Game, pairs: int, seed: int) -> Trial:
    """Run as many days as it takes; made-up accounts are at most a twentieth of each day's."""
    rng = np.random.default_rng(seed)
    a_day = max(1, histories.n_users // (20 * knowledge.accounts))
    questions = list(questions_of(histories, service.vocabulary, knowledge, game, pairs, rng))
    matrix = histories_matrix(histories, service.vocabulary.n_rows)
    rows: dict[str, list[list[float]]] = {}
    for start in range(0, len(questions), a_day):
        today = questions[start : start + a_day]
        for question, row in zip(today, _day(service, histories, knowledge, game, today, rng), strict=True):
            for name, values in {**row, "taste": [in_taste(matrix, question)]}.items():
                rows.setdefault(name, []).append(values)
    views: dict[str, Doubles] = {name: np.array(values, np.float64) for name, values in rows.items()}
    secret = np.array([question.favored for question in questions])
    return Trial(views, secret, np.array([question.target for question in questions]))


def questions_of(
    histories: Histories, vocabulary: Vocabulary, knowledge: Knowledge, game: Game, pairs: int, rng: np.random.Generator
) -> Iterator[Question]:
    """One a target, favored or not by turns."""
    visitors = np.bincount(histories.places, minlength=vocabulary.n_rows)
    askable = ~vocabulary.is_group & (visitors > 0)
    if knowledge.rare:
        askable &= (visitors >= RARE[0]) & (visitors <= RARE[1])
    lengths = histories.lengths()
    made = 0
    for target in rng.permutation(np.flatnonzero((lengths >= TARGET_PLACES[0]) & (lengths <= TARGET_PLACES[1]))):
        mine = places_of(histories, int(target))
        candidates = mine[askable[mine]]
        if not len(candidates) or made == pairs:
            continue
        place, favored = int(rng.choice(candidates)), made % 2 == 0
        others = rng.permutation(mine[mine != place]).astype(np.int64)
        known = others if knowledge.places is None else others[: knowledge.places]
        if not favored and game == "favored or not":
            alike = askable & (vocabulary.regions == vocabulary.regions[place])
            alike[mine] = False
            if not alike.any():
                continue
            apart = np.abs(np.log(visitors[alike] / visitors[place]))
            place = int(np.flatnonzero(alike)[np.argmin(apart + 1e-9 * rng.random(len(apart)))])
        made += 1
        yield Question(int(target), place, favored, known)


def _day(
    service: Service,
    histories: Histories,
    knowledge: Knowledge,
    game: Game,
    questions: list[Question],
    rng: np.random.Generator,
) -> Iterator[dict[str, list[float]]]:
    """What the accounts see of each target."""
    world = histories
    if game == "favored or taken out":
        gone = [question for question in questions if not question.favored]
        users, places = (np.array([getattr(each, name) for each in gone], np.int64) for name in ("target", "place"))
        world = without_favors(histories, users, places)
    accounts = [
        account for question in questions for account in _accounts(service, histories, knowledge, question, rng)
    ]
    answers = service.answers(with_accounts(world, accounts))
    for number, question in enumerate(questions):
        first = world.n_users + number * knowledge.accounts
        seen = [
            look(answers, service.vocabulary, first + at, question.target, question.place)
            for at in range(knowledge.accounts)
        ]
        yield {name: together([each[name] for each in seen]) for name in seen[0]}


def coarse(per_cent: float) -> float:
    """The next lower of 0, 1, 2, 5, 10, 20, 50: what could be said in place of a chance with digits."""
    return float(_STEPS[np.searchsorted(_STEPS, per_cent, "right") - 1])


def in_taste(matrix: sp.csr_matrix, question: Question) -> float:
    """Mean cosine of the place with the known ones, by the users they have in common, the target aside."""
    columns = matrix[:, [question.place, *question.known]].toarray()
    columns[question.target] = 0
    norms = np.maximum(np.linalg.norm(columns, axis=0), 1)
    return float((columns[:, 0] @ columns[:, 1:] / (norms[0] * norms[1:])).mean())


def together(seen: list[list[float]]) -> list[float]:
    """What the account without the place sees, and the mean of what those with it see, less that."""
    plain, loud = np.array(seen[0]), np.mean(seen[1:], axis=0)
    return [*loud.tolist(), *(loud - plain).tolist()]


def _accounts(
    service: Service, histories: Histories, knowledge: Knowledge, question: Question, rng: np.random.Generator
) -> Iterator[tuple[Ints, Ints]]:
    """The account without the place, then those with it, as (places, visits)."""
    known, place = question.known, question.place
    if knowledge.places is None:
        n, overlap = len(known) + 1, service.config.lists.duplicate_overlap
        never = np.union1d(places_of(histories, question.target), [place])
        filler = rng.choice(np.setdiff1d(histories.places, never), int(n / overlap + 1e-9) - n, replace=False)
        yield _account(known[:3])
        yield _account(np.concatenate([known, filler, [place]]))
        return
    yield _account(known)
    if not knowledge.probes:
        yield _account(np.append(known, place), LOUD)
    for _ in range(knowledge.probes):
        yield _account(np.append(rng.choice(known, 2, replace=False), place), LOUD)


def _account(places: Ints, loud: int = 1) -> tuple[Ints, Ints]:
    """Once at each place, and ``loud`` times at the last."""
    visits = np.ones(len(places), np.int64)
    visits[-1] = loud
    return places.astype(np.int64), visits


def look(answers: Answers, vocabulary: Vocabulary, owner: int, target: int, place: int) -> dict[str, list[float]]:
    """What ``owner`` sees of ``target``, and what it says of ``place``; numbers of an absent one: the last one's."""
    found = np.flatnonzero(answers.twins[owner] == target)
    there, at = len(found) > 0, int(found[0]) if len(found) else LIST - 1
    columns = {
        "ids": [float(there)],
        "ranks": [float(LIST - at if there else 0)],
        "percentile": [float(answers.percentiles[owner, at])],
        "chance": [float(answers.chances[owner, at])],
        "coarse": [coarse(float(answers.chances[owner, at]))],
        "score": [float(answers.scores[owner, at]), float(there)],
    }
    if not there:
        return {**columns, "themes": [0.0, 0.0], "evidence": [0.0, 0.0]}
    said = answers.explain(owner, target)
    lot = slice(vocabulary.category_offsets[place], vocabulary.category_offsets[place + 1])
    codes = {str(code) for code in vocabulary.category_codes[vocabulary.categories[lot]]}
    shared = sum(each.key in codes for each in said.categories)
    region = any(each.key == str(vocabulary.region_codes[vocabulary.regions[place]]) for each in said.regions)
    named = any(each.key == str(vocabulary.place_ids[place]) for each in said.places)
    return {
        **columns,
        "themes": [float(shared), float(region)],
        "evidence": [float(named), float(len(said.places))],
    }
