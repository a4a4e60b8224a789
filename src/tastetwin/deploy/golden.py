"""Golden queries: questions that a run has the answers to, asked of what was started for it.

Of a fixed sample of the run's users: the vector that ``analyze`` stored for the history that it read, and the list that
was published. A model of other weights gives other vectors, however sound its files are.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from itertools import islice
from typing import Any, Final

import numpy as np

from tastetwin.analysis.index import Floats
from tastetwin.analysis.lookup import TwinLists
from tastetwin.analysis.stored import as_matrix, read_vectors_table
from tastetwin.client.client import Client
from tastetwin.client.schemas import History
from tastetwin.errors import GateRefused, TasteTwinError, UsageError
from tastetwin.evaluation.belonging import MIN_SAME_COSINE
from tastetwin.features.taste import HISTORY, from_arrow
from tastetwin.generations import read_manifest
from tastetwin.model.batches import pad
from tastetwin.privacy.opt_out import is_opted_out
from tastetwin.runs import Run
from tastetwin.schema import USER
from tastetwin.serving.protocol import Tensors, infer_request, read_infer_response
from tastetwin.store import Store

MODEL: Final = "taste"
OUTPUT: Final = "vector"
K: Final = 10
"""Twins compared."""
MAX_LENGTH_ERROR: Final = 1e-3
"""Of vectors, from 1."""
SECONDS: Final = 30.0
"""For one question; a model's first takes longest."""
FAVORS: Final = 100
"""Reviews and likes of a history that is sent, at most; of users with more only the list is asked for."""


@dataclass(frozen=True)
class Golden:
    """What a run must answer."""

    run: Run
    lists: TwinLists
    users: list[str]
    """Ascending."""
    inputs: Tensors
    """Of the model, a row a user."""
    vectors: Floats
    """[n, dim] as stored."""

    @classmethod
    def of(cls, store: Store, run: Run, n: int) -> Golden:
        """``n`` users of a run, always the same ones.

        Raises:
            UsageError: STAGE-MISSING; GOLDEN-NONE where nobody has a list.
            StoreError: DAMAGED and others of the store.
        """
        lists = TwinLists(store, run)
        users = lists.some_users(n)
        if not users:
            fix = "look at the run's report"
            raise UsageError("GOLDEN-NONE", place=f"run {run.run_id}", rule="somebody has a list", fix=fix)
        bundle = read_manifest(store, "train", run.generation("train"))
        rows = lists.rows_of(lists.features, "history", HISTORY, users).sort_by(USER)
        batch = pad(from_arrow(rows), np.arange(len(users)), int(bundle.settings["train"]["max_length"]))
        stored = read_vectors_table(store, lists.analysis.paths("vectors"), [(USER, "in", users)]).sort_by(USER)
        return cls(run, lists, users, batch.inputs(), as_matrix(stored))

    @property
    def bundle(self) -> str:
        """Generation of the run's encoder."""
        return self.run.generation("train")


def check_model(url: str, golden: Golden) -> float:
    """Ask a model backend for the vectors; returns the lowest cosine with those stored.

    Raises:
        GateRefused: DEPLOY-GOLDEN.
    """
    path = f"{url}/v2/models/{MODEL}/versions/{golden.bundle}/infer"
    headers, body = infer_request(golden.inputs, [OUTPUT])
    try:
        with urllib.request.urlopen(urllib.request.Request(path, body, headers), timeout=SECONDS) as said:  # nosec B310  # http: of a target
            vectors = read_infer_response(said.headers, said.read())[OUTPUT]
    except (OSError, HTTPException, KeyError, UsageError) as error:
        raise _refused(url, f"no answer: {error}", "vectors for the run's histories") from error
    cosines = _cosines(vectors, golden.vectors)
    wrong = int((~(cosines >= MIN_SAME_COSINE)).sum())  # written so that NaN is wrong
    if wrong:
        value = f"{wrong} of {len(cosines)} vectors are others than the run's own, lowest cosine {cosines.min():.4f}"
        raise _refused(url, value, f"unit vectors, and a cosine of {MIN_SAME_COSINE} with what analyze stored")
    return float(cosines.min())


def _cosines(found: Any, stored: Floats) -> Floats:
    """[n]; NaN where a vector is not of unit length or not of numbers."""
    if found.shape != stored.shape:
        return np.full(len(stored), np.nan, np.float32)
    lengths = np.linalg.norm(found, axis=1)
    sound = np.abs(lengths - 1) <= MAX_LENGTH_ERROR
    return np.where(sound, (found * stored).sum(axis=1), np.nan).astype(np.float32)


def check_gateway(url: str, key: str, golden: Golden) -> int:
    """Ask a gateway, or what stands in front of it, for lists and vectors; returns how many lists were compared.

    Users with favors since the run have another list, rightly so: of them only the version is looked at.

    Raises:
        GateRefused: DEPLOY-GOLDEN.
    """
    try:
        return asyncio.run(_check_gateway(url, key, golden))
    except TasteTwinError as error:
        if error.problem.code == "DEPLOY-GOLDEN":
            raise
        raise _refused(url, f"no answer: {error.problem.code} {error.problem.value}", "answers") from error


async def _check_gateway(url: str, key: str, golden: Golden) -> int:
    lists = golden.lists
    users = [user for user in golden.users if not is_opted_out(lists.store, user)]
    async with Client(url, key, timeout=SECONDS, model=MODEL) as gateway:
        said = [await gateway.twins(user, k=K, evidence=False) for user in users]
        histories = [each for user in users if _size(each := _history(lists.favors(user))) <= FAVORS]
        vectors = [(await gateway.embed([each])).items[0].vector for each in histories]
    others = {each.version for each in said} - {golden.run.run_id}
    if others:
        raise _refused(url, f"versions {', '.join(sorted(others))}", f"answers of run {golden.run.run_id}")
    settled = [(user, each) for user, each in zip(users, said, strict=True) if each.source == "published"]
    for user, answer in settled:
        _same_list(url, [twin.user for twin in answer.twins], _published(lists, user))
    for vector in vectors:
        _sound(url, vector)
    return len(settled)


def _published(lists: TwinLists, user: str) -> list[str]:
    listed = lists.stored_list(user).column("twin_idno").to_pylist()
    return list(islice((twin for twin in listed if not is_opted_out(lists.store, twin)), K))


def _same_list(url: str, found: list[str], published: list[str]) -> None:
    # Of a list that is shorter than K the gateway searches for the rest.
    if found[: len(published)] != published:
        same = len(set(found) & set(published))
        raise _refused(url, f"{same} of {len(published)} twins in a list are the run's", "the lists of the run")


def _sound(url: str, vector: list[float] | None) -> None:
    length = float(np.linalg.norm(np.array(vector or [], np.float32)))
    if not abs(length - 1) <= MAX_LENGTH_ERROR:
        raise _refused(url, f"a vector of length {length:.4f}", "a unit vector for each history")


def _history(row: Mapping[str, Any]) -> History:
    """A user's ``USER_FAVOR`` row as the API takes it."""
    return History(reviews=[_plain(each) for each in row["review_list"] or ()],
                   likes=[_plain(each) for each in row["like_list"] or ()])  # fmt: skip


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in event.items() if value is not None}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in known.items()}


def _size(history: History) -> int:
    return len(history.reviews) + len(history.likes)


def _refused(place: str, value: str, rule: str) -> GateRefused:
    return GateRefused("DEPLOY-GOLDEN", place=place, value=value, rule=rule, fix="this run must not be served")
