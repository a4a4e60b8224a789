"""How a run's input, people and vectors differ from the published run's: figures for the health card.

Mixes are compared by the population stability index (PSI), sum of (p - q) ln(p / q) over kinds; by the usual rule below
.1 nothing changed, above .25 much did (Siddiqi 2006, "Credit Risk Scorecards"). Of few events chance alone makes a PSI:
(1/n + 1/m) times chi-squared with kinds - 1 degrees of freedom (Yurdakul & Naranjo 2020, "Statistical properties of
the population stability index"); what chance exceeds 1 time in 1,000 is added to every threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from tastetwin.config import EvaluateConfig
from tastetwin.evaluation.belonging import Data
from tastetwin.evaluation.health import effective_rank
from tastetwin.evaluation.measures import Limit, Measure
from tastetwin.features.histories import Histories, Vocabulary

FloatMatrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]
Mix = Mapping[str, int]
"""How many fall on each kind."""

MIN_EXPECTED: Final = 15
"""Events that a kind must have been expected to bring before their absence says that it is lost."""
LOST_SHARE: Final = 0.1
"""Of the expected events, up to which a kind counts as lost: by chance 5 times in a million (Poisson)."""
MAX_MEAN_SHIFT: Final = 0.1
MIN_RANK_RATIO: Final = 0.7
MIN_COMPARED: Final = 30
"""Fewer users, or events, than this are not compared."""
UNKNOWN: Final = "unknown"
_Z: Final = 3.09
"""Of a normal distribution, exceeded 1 time in 1,000."""


@dataclass(frozen=True)
class Intake:
    """What one logical day brought."""

    lines: Mapping[str, int]
    """Kind -> lines read."""
    usual: Mapping[str, list[int]]
    """Kind -> lines of each of the days before, the first ever (all of the past at once) left out."""
    fate: Mix
    """Lines accepted, and refused by reason."""
    rows: Rows
    """[n_events] the vocabulary row of each new review's or like's place; -1 where nothing is known of it."""


@dataclass(frozen=True)
class Vectors:
    """The same users' vectors of two runs."""

    before: FloatMatrix
    """[n, d] of the published run."""
    today: FloatMatrix
    """[n, d]"""
    comparable: bool
    """Whether today's model goes on from the published one, so that one space holds both."""


def drift(
    day: Intake, before_fate: Mix, before: Data, today: Data, vectors: Vectors, config: EvaluateConfig
) -> list[Measure]:
    """Figures of the day's input, of everybody, of the same people then and now, and of their vectors.

    Args:
        day: what today brought.
        before_fate: ``Intake.fate`` of the published run's day.
        before: the published run's data, of all or of a sample of its users.
        today: the data of all users.
        vectors: of a sample of users of both runs.
        config: thresholds.
    """
    return [
        *_lines(day, config),
        *_shifted("refused lines by reason", before_fate, day.fate, "DRIFT-REFUSED", config),
        *_day_mix(day, before, today.vocabulary, config),
        *_favors(before.histories, today.histories, config),
        *_people(before, today, config),
        *_vectors(vectors, config),
    ]


def psi(before: Mix, today: Mix) -> float:
    """The population stability index of two mixes; half a count is added to each kind, so that none is absent."""
    kinds = sorted({*before, *today})
    p, q = (np.array([mix.get(kind, 0) + 0.5 for kind in kinds]) for mix in (today, before))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum()) if kinds else 0.0


def chance_psi(before: Mix, today: Mix) -> float:
    """The PSI that two samples of one mix exceed 1 time in 1,000; chi-squared by Wilson & Hilferty (1931)."""
    free = len({*before, *today}) - 1
    if free < 1:
        return 0.0
    part = 2 / (9 * free)
    quantile: float = free * (1 - part + _Z * part**0.5) ** 3
    return quantile * (1 / max(1, sum(before.values())) + 1 / max(1, sum(today.values())))


def _shifted(
    what: str, before: Mix, today: Mix, code: str, config: EvaluateConfig, grave: bool = False
) -> Iterator[Measure]:
    if min(sum(before.values()), sum(today.values())) < MIN_COMPARED:
        return
    threshold = config.max_psi + chance_psi(before, today)
    limit = Limit(code, "refuse" if grave else "warn", threshold, "most", f"{what}: {_most_moved(before, today)}")
    meaning = "PSI: below .1 as before, above .25 much changed; the limit allows for chance"
    yield Measure("drift", what, "number", psi(before, today), meaning, limit)


def _most_moved(before: Mix, today: Mix) -> str:
    """The kind whose share changed most, in words."""
    n, m = max(1, sum(today.values())), max(1, sum(before.values()))
    kind = max(sorted({*before, *today}), key=lambda each: abs(today.get(each, 0) / n - before.get(each, 0) / m))
    return f"{kind} was {before.get(kind, 0) / m:.1%}, is {today.get(kind, 0) / n:.1%}"


def _lines(day: Intake, config: EvaluateConfig) -> Iterator[Measure]:
    usual, lines = day.usual, day.lines
    if usual and not any(lines.get(kind) for kind in usual):  # of a day without events one thing is to be said, once
        both = " and ".join(usual)
        usual, lines = {both: [sum(each) for each in zip(*usual.values(), strict=True)]}, {both: 0}
    for kind, before in usual.items():
        now, expected = lines.get(kind, 0), median(before)
        if max(now, expected) < MIN_COMPARED:
            continue
        factor = max((now + 1) / (expected + 1), (expected + 1) / (now + 1))
        threshold = config.max_lines_factor * (1 + _Z / max(1.0, expected) ** 0.5)
        said = f"{now:,} lines of {kind}, {expected:,.0f} on other days"
        limit = Limit("DRIFT-LINES", "warn", threshold, "most", said)
        name = f"lines of {kind}, beside other days"
        yield Measure("drift", name, "number", factor, f"a factor, up or down: {said}", limit)


def _day_mix(day: Intake, before: Data, vocabulary: Vocabulary, config: EvaluateConfig) -> Iterator[Measure]:
    known = before.histories.places
    for what, mix in (("categories", categories), ("regions", regions)):
        then, now = mix(known, before.vocabulary), mix(day.rows, vocabulary)
        yield from _shifted(f"{what} of the day's events", then, now, "DRIFT-MIX", config)
        if sum(now.values()) >= MIN_COMPARED:
            yield _lost(what, then, now)


def _lost(what: str, before: Mix, today: Mix) -> Measure:
    """Kinds with hardly an event; the PSI does not see a small one go."""
    share = sum(today.values()) / max(1, sum(before.values()))
    expected = {kind: n * share for kind, n in sorted(before.items()) if n * share >= MIN_EXPECTED}
    lost = [kind for kind, n in expected.items() if today.get(kind, 0) <= LOST_SHARE * n]
    said = f"{what} with hardly an event today: {', '.join(lost[:5])}"
    meaning = f"at least {MIN_EXPECTED} events were to be expected of each"
    return Measure("drift", f"{what} lost", "count", len(lost), meaning, Limit("DRIFT-LOST", "warn", 0, "most", said))


def _favors(before: Histories, today: Histories, config: EvaluateConfig) -> Iterator[Measure]:
    edges = np.unique(np.quantile(before.lengths(), np.arange(0.1, 1, 0.1))) if before.n_users else np.zeros(0)
    then, now = (Counter(_bins(each.lengths(), edges)) for each in (before, today))
    yield from _shifted("favored places per user", then, now, "DRIFT-FAVORS", config)


def _bins(lengths: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]) -> list[str]:
    names = [f"up to {edge:.0f}" for edge in edges] + ["more"]
    return [names[at] for at in np.searchsorted(edges, lengths)]


def _people(before: Data, today: Data, config: EvaluateConfig) -> Iterator[Measure]:
    """Of people whom both runs know: a day adds to what they favor, it does not move it elsewhere."""
    _, then, now = np.intersect1d(before.histories.user_ids, today.histories.user_ids, return_indices=True)
    mine, theirs = today.histories.select(now).places, before.histories.select(then).places
    for what, mix in (("categories", categories), ("regions", regions)):
        pair = mix(theirs, before.vocabulary), mix(mine, today.vocabulary)
        yield from _shifted(f"{what} of the same people's places", *pair, "DATA-SHIFTED", config, grave=True)


def _vectors(vectors: Vectors, config: EvaluateConfig) -> Iterator[Measure]:
    finite = np.isfinite(vectors.before).all(axis=1) & np.isfinite(vectors.today).all(axis=1)
    before, today = vectors.before[finite], vectors.today[finite]
    if len(today) < MIN_COMPARED:
        return
    if vectors.comparable and before.shape == today.shape:
        cosine = float((before * today).sum(axis=1).mean())
        limit = Limit(
            "DRIFT-VECTORS", "warn", config.min_vector_cosine, "least",
            f"the same users' vectors have a mean cosine of {cosine:.2f} with the published run's",
        )  # fmt: skip
        yield Measure("drift", "cosine of a user's vectors of both runs", "number", cosine, "1: nobody moved", limit)
    then, now = (float(np.linalg.norm(each.mean(axis=0))) for each in (before, today))
    said = f"the mean vector's length was {then:.3f}, is {now:.3f}"
    limit = Limit("DRIFT-VECTORS", "warn", MAX_MEAN_SHIFT, "most", said)
    meaning = f"{said}; 1 would be one direction for all"
    yield Measure("drift", "change of the mean vector's length", "number", abs(now - then), meaning, limit)
    then, now = effective_rank(before), effective_rank(today)
    said = f"the effective rank was {then:.1f}, is {now:.1f}"
    limit = Limit("DRIFT-VECTORS", "warn", MIN_RANK_RATIO, "least", said)
    yield Measure("drift", "effective rank, beside the published run's", "number", now / max(then, 1e-9), said, limit)


def categories(rows: Rows, vocabulary: Vocabulary) -> Mix:
    """How many of the places, by vocabulary row, have each category code; those with several count several times."""
    known = rows[rows >= 0]
    lengths = np.diff(vocabulary.category_offsets)
    times = np.bincount(known, minlength=vocabulary.n_rows)
    per_category = np.bincount(
        vocabulary.categories, weights=np.repeat(times, lengths), minlength=len(vocabulary.category_codes)
    )
    none = len(rows) - len(known) + int(times[lengths == 0].sum())
    return _counted(vocabulary.category_codes, per_category, none)


def regions(rows: Rows, vocabulary: Vocabulary) -> Mix:
    """How many of the places, by vocabulary row, lie in each region."""
    found = np.where(rows >= 0, vocabulary.regions[np.maximum(rows, 0)], -1)
    per_region = np.bincount(found[found >= 0], minlength=len(vocabulary.region_codes))
    return _counted(vocabulary.region_codes, per_region, int((found < 0).sum()))


def _counted(codes: npt.NDArray[np.generic], counts: npt.NDArray[np.generic], none: int) -> Mix:
    named = {str(code): int(count) for code, count in zip(codes.tolist(), counts.tolist(), strict=True) if count}
    return {**named, **({UNKNOWN: none} if none else {})}
