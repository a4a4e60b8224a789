"""All tiers on one machine: which they are, and what becomes of one that ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tastetwin.cli.options import GATEWAY_KEY
from tastetwin.errors import StoreError
from tastetwin.serving import together
from tastetwin.serving.keys import Keys, add_key
from tastetwin.serving.together import Tier, serve_all, tiers_of


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_all_three_tiers_are_there_and_the_app_may_ask_the_gateway(tmp_path: Path) -> None:
    """One command shows the whole product; started again, it goes on with the same file of keys."""
    keys = tmp_path / "keys.json"
    add_key(keys, "laptop", ["app"])
    tiers_of("store", keys, [])
    tiers = tiers_of("store", keys, ["--config", "c.yaml"])
    assert [tier.name for tier in tiers] == ["backend", "gateway", "app"]
    assert all(tier.arguments[0] == tier.name and tier.arguments[-1] == "c.yaml" for tier in tiers)
    caller = Keys(keys).caller(tiers[2].environment[GATEWAY_KEY])
    assert caller is not None and caller.scopes == {"twins", "favors", "opt-out"}
    assert not any(tiers[2].environment[GATEWAY_KEY] in word for tier in tiers for word in tier.arguments)


def test_a_tier_that_ends_again_and_again_takes_all_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than to look alive for ever; the others end too."""
    monkeypatch.setattr(together, "_LOOK", 0.01)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    tiers = [Tier("backend", [], "http://127.0.0.1:9/"), Tier("gateway", [], "http://127.0.0.1:9/")]
    with pytest.raises(StoreError, match="TIER-ENDED"):
        serve_all(tiers, lambda: None)
    assert [tier.process is not None and tier.process.poll() is not None for tier in tiers] == [True, True]
