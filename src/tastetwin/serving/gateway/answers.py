"""Answers as the API gives them: plain values, ready to be written as JSON; see ``schemas``."""

from __future__ import annotations

from typing import Any

import numpy as np

from tastetwin.analysis.evidence import Evidence, Shared
from tastetwin.analysis.sentences import Language
from tastetwin.client.schemas import Wanted
from tastetwin.serving.gateway.pack import Near, Rows
from tastetwin.serving.gateway.people import People

Json = dict[str, Any]


def twin_rows(people: People, found: Near, mine: Rows, wanted: Wanted, with_scores: bool) -> list[Json]:
    """``schemas.Twin`` of people found, ranks from 1; the first ``wanted.skip`` left out."""
    rows: list[Json] = [{"rank": rank, "user": people.name(int(at))} for rank, at in enumerate(found.people, start=1)]
    if with_scores:
        for row, numbers in zip(rows, _numbers(people, found), strict=True):
            row.update(numbers)
    rows = rows[wanted.skip :]
    if wanted.evidence:
        theirs = (people.rows(at) for at in found.people[wanted.skip :].tolist())
        explained = people.pack.explainers[wanted.language].explain_each(mine, theirs)
        for row, each in zip(rows, explained, strict=True):
            row["evidence"] = evidence(each)
    return rows


def _numbers(people: People, found: Near) -> list[Json]:
    pack = people.pack
    percentiles = pack.scale.percentile(found.scores)
    chances = None if pack.chance is None else pack.chance.of(percentiles, people.places_of(found.people))
    columns = {"score": found.scores, "percentile": percentiles} | ({} if chances is None else {"chance": chances})
    told = [np.round(column.astype(np.float64), 4).tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*told, strict=True)]


def evidence(found: Evidence) -> Json:
    """``schemas.Evidence``."""
    return {
        "sentence": found.sentence,
        "places": [each.key for each in found.places],
        "categories": [each.key for each in found.categories],
        "regions": [each.key for each in found.regions],
    }


def explanation(people: People, first: int, second: int, language: Language) -> Json:
    """``schemas.Evidence`` of two people."""
    return evidence(people.pack.explainers[language].explain(people.rows(first), people.rows(second)))


def comparison(people: People, first: int, second: int, language: Language, with_scores: bool) -> Json:
    """``schemas.CompareAnswer`` of two people, without its origin and ``stale``."""
    explain, mine, theirs = people.pack.explainers[language], people.rows(first), people.rows(second)
    said: Json = {
        "evidence": evidence(explain.explain(mine, theirs)),
        "more": [_ahead(each) for each in explain.more_of(mine, theirs)],
        "less": [_ahead(each) for each in explain.more_of(theirs, mine)],
    }
    if with_scores:
        said |= _closeness(people, first, second)
    return said


def _ahead(shared: Shared) -> Json:
    return {"category": shared.key, "ahead": round(shared.weight, 4)}


def _closeness(people: People, first: int, second: int) -> Json:
    mine, theirs = people.vector(first), people.vector(second)
    if mine is None or theirs is None:
        return {}
    crowding = people.pack.crowding_of(np.stack([mine, theirs]), [people.own(at) for at in (first, second)])
    score = np.array([float(mine @ theirs) - sum(crowding.tolist()) / 2], np.float32)
    percentile = people.pack.scale.percentile(score)
    return {"score": round(float(score[0]), 4), "percentile": round(float(percentile[0]), 4)}
