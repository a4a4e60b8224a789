"""Golden queries tell a model that is not the run's, whatever it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

from tastetwin.deploy.golden import Golden, check_gateway, check_model
from tastetwin.errors import GateRefused, UsageError
from tastetwin.privacy.opt_out import opt_in, opt_out
from tastetwin.serving.protocol import infer_response, read_infer_request
from tests.deploy.town import Town
from tests.serving.gateways import closed_port, served

pytestmark = pytest.mark.slow  # the town takes seconds


@pytest.fixture(scope="module")
def golden(runs: Town) -> Golden:
    return Golden.of(runs.store, runs.old, 12)


def backend(golden: Golden, change: Callable[[Any], Any]) -> Any:
    """A model that knows the right vectors."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        asked = read_infer_request(headers, await Request(scope, receive).body())
        assert golden.bundle in scope["path"] and asked.inputs["places"].shape[0] == len(golden.users)
        told, body = infer_response("taste", golden.bundle, {"vector": change(golden.vectors.copy())}, {"vector": True})
        fields = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return app


def one_other(vectors: Any) -> Any:
    vectors[3] = np.roll(vectors[3], 1)
    return vectors


def one_nan(vectors: Any) -> Any:
    vectors[0, 0] = np.nan
    return vectors


def test_the_run_s_own_vectors_pass(golden: Golden) -> None:
    """The premise of all others."""
    with served(backend(golden, lambda vectors: vectors), "off") as url:
        assert check_model(url, golden) > 0.999


@pytest.mark.parametrize(
    "change",
    [
        one_other,
        one_nan,
        lambda vectors: vectors * 1.1,
        lambda vectors: vectors[::-1].copy(),
        lambda v: v[:, :-1].copy(),
    ],
    ids=["one other", "not a number", "not unit", "mixed up", "shorter"],
)
def test_other_vectors_do_not(golden: Golden, change: Callable[[Any], Any]) -> None:
    """One user in twelve is enough."""
    with served(backend(golden, change), "off") as url, pytest.raises(GateRefused, match="DEPLOY-GOLDEN"):
        check_model(url, golden)


def test_no_answer_is_no_pass(golden: Golden) -> None:
    """Nobody there."""
    with pytest.raises(GateRefused, match="DEPLOY-GOLDEN"):
        check_model(closed_port(), golden)
    with pytest.raises(GateRefused, match="DEPLOY-GOLDEN"):
        check_gateway(closed_port(), "tt_key", golden)


def test_the_same_users_are_asked_each_time_and_none_who_opted_out(runs: Town) -> None:
    """A sample drawn anew would make a failure hard to repeat."""
    first, again = (Golden.of(runs.store, runs.old, 12) for _ in range(2))
    assert first.users == again.users == sorted(first.users)
    opt_out(runs.store, first.users[:1])
    try:
        assert first.users[0] not in Golden.of(runs.store, runs.old, 12).users
    finally:
        opt_in(runs.store, first.users[:1])


def test_a_run_without_lists_cannot_be_asked(runs: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pass without a question would be no pass."""
    monkeypatch.setattr("tastetwin.analysis.lookup.TwinLists.some_users", lambda self, n: [])
    with pytest.raises(UsageError, match="GOLDEN-NONE"):
        Golden.of(runs.store, runs.old, 12)
