"""Which version answers: shares, stability, and what a change of weights moves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.errors import UsageError
from tastetwin.serving.gateway.routing import Routes

KEYS = [b"user-%d" % at for at in range(4_000)]
WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0, 100), min_size=1, max_size=5).filter(
    lambda weights: sum(weights.values()) > 0.1
)


def chosen(weights: dict[str, float], keys: list[bytes] = KEYS) -> list[str]:
    routes = Routes(weights, {})
    return [routes.choose(key, None) for key in keys]


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_each_version_answers_its_share(weights: dict[str, float]) -> None:
    """A canary of one per cent is an experiment on one per cent; bounds are six standard deviations."""
    found = chosen(weights)
    for version, weight in weights.items():
        share = weight / sum(weights.values())
        slack = 6 * (share * (1 - share) * len(KEYS)) ** 0.5
        assert abs(found.count(version) - share * len(KEYS)) <= slack + 1


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.data())
def test_a_grown_weight_moves_users_only_to_it(weights: dict[str, float], data: st.DataObject) -> None:
    """A user who changes version sees other twins: nobody does who need not."""
    grown = data.draw(st.sampled_from(sorted(weights)))
    before = chosen(weights, KEYS[:1_000])
    after = chosen({**weights, grown: weights[grown] + data.draw(st.floats(0, 50))}, KEYS[:1_000])
    assert {new for old, new in zip(before, after, strict=True) if old != new} <= {grown}


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_the_order_of_declaration_does_not_matter(weights: dict[str, float]) -> None:
    """Two gateways with the same settings send a user to the same version."""
    keys = KEYS[:300]
    assert chosen(weights, keys) == chosen(dict(reversed(weights.items())), keys)


def test_zero_weight_is_never_chosen_but_answers_by_name() -> None:
    """How a version is tried before anybody meets it."""
    routes = Routes({"old": 1.0, "new": 0.0}, {"shy": 0.5})
    assert {routes.choose(key, None) for key in KEYS} == {"old"}
    assert [routes.choose(b"u", name) for name in ("new", "old", "shy")] == ["new", "old", "shy"]
    assert routes.versions == {"old", "new", "shy"}


@pytest.mark.parametrize("asked", ["", "newest", "x" * 10_000])
def test_an_unknown_name_is_refused_in_few_words(asked: str) -> None:
    """The header comes from outside: never a path, never an echo of ten thousand characters."""
    with pytest.raises(UsageError, match="UNKNOWN-VERSION") as caught:
        Routes({"old": 1.0}, {}).choose(b"u", asked)
    assert len(str(caught.value)) < 400


def test_shadows_see_their_share_and_independently_of_who_answers() -> None:
    """A comparison of two versions on the requests that one of them chose would be none."""
    routes = Routes({"a": 0.5, "b": 0.5}, {"all": 1.0, "none": 0.0, "a": 0.25})
    found = [routes.shadows(key) for key in KEYS]
    assert all("all" in each and "none" not in each for each in found)
    some = ["a" in each for each in found]
    assert abs(sum(some) / len(KEYS) - 0.25) < 0.03
    by_a = [seen for seen, key in zip(some, KEYS, strict=True) if routes.choose(key, None) == "a"]
    assert abs(sum(by_a) / len(by_a) - 0.25) < 0.05
    assert found == [routes.shadows(key) for key in KEYS]


@pytest.mark.parametrize(
    ("weights", "shadow", "code"),
    [
        ({}, {}, "ROUTES-WEIGHTS"),
        ({"a": 0.0}, {}, "ROUTES-WEIGHTS"),
        ({"a": 1.0, "b": -0.1}, {}, "ROUTES-WEIGHTS"),
        ({"a": float("nan")}, {}, "ROUTES-WEIGHTS"),
        ({"a": float("inf")}, {}, "ROUTES-WEIGHTS"),
        ({"a": 1.0}, {"b": 1.1}, "ROUTES-SHADOW"),
        ({"a": 1.0}, {"b": float("nan")}, "ROUTES-SHADOW"),
    ],
)
def test_weights_and_shares_that_make_no_sense_are_refused(
    weights: dict[str, float], shadow: dict[str, float], code: str
) -> None:
    """At the start, not at the first unlucky user."""
    with pytest.raises(UsageError, match=code):
        Routes(weights, shadow)
