"""Favors of who opts out are read in by no gateway, and by every gateway once they opt in again."""

from __future__ import annotations

import asyncio

import pytest

from tastetwin.privacy.opt_out import name_of
from tastetwin.serving.gateway.fresh import MemoryLog
from tests.serving.gateway.intakes import Gateway, likes, run, vector_of


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(MemoryLog())


def test_who_opted_out_is_not_read_in(gateway: Gateway) -> None:
    """Kept by another gateway before it knew."""

    async def whole() -> None:
        await gateway.start()
        gateway.denied.users.add("ann")
        gateway.log.add_many({"ann": likes("a"), "bob": likes("b")}, 1.0)
        await gateway.intake.follow()
        assert gateway.vectors == {"bob": vector_of("b")}

    run(whole())


def test_who_opts_out_while_their_vector_is_made_is_not_read_in(gateway: Gateway) -> None:
    """A newcomer whom nobody had hidden yet, for nobody knew them: they would be shown until the next version."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.holds = True
        added = asyncio.create_task(gateway.add("ann", likes("a")))
        await gateway.model.waits(1)
        gateway.denied.users.add("ann")
        gateway.model.held[0].set()
        await added
        assert gateway.vectors == {}

    run(whole())


def test_who_comes_back_has_the_favors_that_were_passed_over(gateway: Gateway) -> None:
    """They were acknowledged; and gateways would differ, by which of them had read the favors before the opt-out."""

    async def whole() -> None:
        gateway.log.add_many({"ann": likes("a")}, 1.0)
        gateway.denied.users.add("ann")
        await gateway.start()
        gateway.log.add_many({"bob": likes("b")}, 1.0)
        gateway.denied.users.add("bob")
        await gateway.intake.follow()
        assert gateway.vectors == {}
        gateway.denied.users.clear()
        await gateway.intake.follow()
        assert gateway.vectors == {"ann": vector_of("a"), "bob": vector_of("b")}
        await gateway.intake.follow()
        assert gateway.model.calls == 1

    run(whole())


def test_who_leaves_while_their_vector_is_made_has_it_once_they_come_back(gateway: Gateway) -> None:
    """Their favors were kept in that moment, and no gateway but this one would know them."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.holds = True
        added = asyncio.create_task(gateway.add("ann", likes("a")))
        await gateway.model.waits(1)
        gateway.denied.users.add("ann")
        gateway.model.held[0].set()
        await added
        gateway.model.holds = False
        gateway.denied.users.clear()
        await gateway.intake.follow()
        assert gateway.vectors == {"ann": vector_of("a")}

    run(whole())


def test_who_opts_out_waits_for_no_model(gateway: Gateway) -> None:
    """The dashboard would show people whose favors wait for a model, for ever, while all models are well."""

    async def whole() -> None:
        await gateway.start()
        gateway.model.down = "BACKEND-UNAVAILABLE"
        await gateway.add("ann", likes("a"))
        assert gateway.intake.unread == 1
        gateway.denied.users.add("ann")
        gateway.model.down = None
        await gateway.intake.follow()
        assert gateway.intake.unread == 0
        gateway.denied.users.clear()
        await gateway.intake.follow()
        assert gateway.vectors == {"ann": vector_of("a")}

    run(whole())


def test_nothing_that_was_passed_over_outlasts_being_forgotten(gateway: Gateway) -> None:
    """An event of theirs may have been under way: it would stay in the process's memory until the next version."""

    async def whole() -> None:
        await gateway.start()
        gateway.denied.users.add("ann")
        await gateway.intake.tidy(frozenset({name_of("ann")}))
        gateway.log.add_many({"ann": likes("a")}, 1.0)
        await gateway.intake.follow()
        await gateway.intake.tidy(frozenset({name_of("ann")}))
        gateway.denied.users.clear()
        await gateway.intake.follow()
        assert gateway.vectors == {}

    run(whole())
