"""Before/after diffs: did a target favor a place, or come to the service, between two days?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from attacks.figures import Ints, Mask, Trial
from attacks.service import LIST, Answers, Service, places_of, without_favors
from tastetwin.features.histories import Histories
from tastetwin.model.linear import histories_matrix

NEAR: Final = 20
"""Users with most places in common with a target who is never shown, whose lists are watched."""
_A_DAY: Final = 50
"""A fiftieth of the users are targets of one and the same pair of days."""

Views = Mapping[str, list[float]]
Look = Callable[[Answers, Answers, int, Mask], Views]


def new_favor(service: Service, histories: Histories, targets: int, news: float, seed: int) -> Trial:
    """Half of the targets favor one place more on the second day, which the attacker has in mind.

    The attacker knows who else favors it, and reads the lists of everybody but the targets on both days. A share
    ``news`` of all other favors, the target's too, is new as well.
    """
    rng = np.random.default_rng(seed)
    users = some_targets(histories, targets, rng)
    places = np.array([rng.choice(places_of(histories, int(user))) for user in users], np.int64)

    def world(asked: Ints, there: Mask) -> Histories:
        return without_favors(histories, users[asked[~there]], places[asked[~there]])

    def watched(case: int) -> Mask:
        return owners_of(histories, int(places[case]))

    return _two_days(service, world, users, watched, shift, news, rng)


def new_user(service: Service, histories: Histories, targets: int, news: float, seed: int) -> Trial:
    """Half of the targets have their whole history from the second day on; all are learned from and shown to nobody.

    The attacker knows the history, and reads the lists of those who have most places in common with it. (Whoever is
    shown is seen to be there by their id.)
    """
    rng = np.random.default_rng(seed)
    users = some_targets(histories, targets, rng)
    matrix = histories_matrix(histories, int(histories.places.max()) + 1)

    def world(asked: Ints, there: Mask) -> Histories:
        return emptied(histories, users[asked[~there]])

    def watched(case: int) -> Mask:
        shared = np.asarray((matrix @ matrix[[users[case]]].T).todense()).ravel()
        near = np.zeros(histories.n_users, bool)
        near[np.argsort(-shared, kind="stable")[1 : NEAR + 1]] = True
        return near

    return _two_days(service, world, users, watched, unrest, news, rng, hide=True)


def _two_days(
    service: Service,
    world: Callable[[Ints, Mask], Histories],
    users: Ints,
    watched: Callable[[int], Mask],
    look: Look,
    news: float,
    rng: np.random.Generator,
    hide: bool = False,
) -> Trial:
    """``world``: the histories given which of the cases are there already; the first day has none of them."""
    secret = np.arange(len(users)) % 2 == 0
    views: dict[str, list[list[float]]] = {}
    none = np.empty(0, np.int64)
    a_day = max(1, world(none, none.astype(bool)).n_users // _A_DAY)
    for start in range(0, len(users), a_day):
        asked = np.arange(start, min(start + a_day, len(users)))
        hidden = users[asked] if hide else none
        yesterday = less_news(world(asked, np.zeros(len(asked), bool)), news, rng)
        before = service.answers(yesterday, hidden)
        after = service.answers(world(asked, secret[asked]), hidden)
        for case in asked.tolist():
            seen = watched(case)
            seen[users[asked]] = False
            for name, values in look(before, after, int(users[case]), seen).items():
                views.setdefault(name, []).append(values)
    return Trial({name: np.array(rows) for name, rows in views.items()}, secret, users)


def shift(before: Answers, after: Answers, target: int, fans: Mask) -> dict[str, list[float]]:
    """How the target moved in the lists of those who have the place, and of the others."""
    changes: dict[str, list[float]] = {}
    for group in (fans, ~fans):
        at = [np.where((day.twins == target) & group[:, None], 1.0, 0.0) for day in (before, after)]
        rank = np.arange(LIST, 0, -1)
        stayed = at[0].any(axis=1) & at[1].any(axis=1)
        changes.setdefault("ids", []).append(float(at[1].sum() - at[0].sum()))
        changes.setdefault("ranks", []).append(float((at[1] * rank).sum() - (at[0] * rank).sum()))
        for name, field in (("percentile", "percentiles"), ("chance", "chances"), ("score", "scores")):
            old, new = ((each * getattr(day, field)).sum(axis=1) for each, day in zip(at, (before, after), strict=True))
            changes.setdefault(name, []).append(float((new - old)[stayed].mean()) if stayed.any() else 0.0)
    return changes


def unrest(before: Answers, after: Answers, target: int, near: Mask) -> dict[str, list[float]]:
    """How much the lists near the target changed, and those of the others."""
    changes: dict[str, list[float]] = {}
    rest = ~near
    rest[target] = False
    for group in (near, rest):
        old, new = before.twins[group], after.twins[group]
        kept = (old[:, :, None] == new[:, None, :]).any(axis=2)
        changes.setdefault("ids", []).append(float(1 - kept.mean()))
        changes.setdefault("ranks", []).append(float((old != new).mean()))
        for name, field in (("percentile", "percentiles"), ("chance", "chances"), ("score", "scores")):
            apart = getattr(after, field)[group] - getattr(before, field)[group]
            changes.setdefault(name, []).extend([float(apart.mean()), float(np.abs(apart).mean())])
    return changes


def whole_knowledge(service: Service, histories: Histories, targets: int, seed: int) -> Trial:
    """The attacker knows every favor of everybody but one, and works out the day without it.

    The view is how many entries of other people's lists are not as worked out, so a day without the favor has none.
    """
    rng = np.random.default_rng(seed)
    users = some_targets(histories, targets, rng)
    differ: dict[str, list[list[float]]] = {}
    with_it = service.answers(histories)
    for user in users.tolist():
        place = rng.choice(places_of(histories, user))
        without = service.answers(without_favors(histories, np.array([user]), np.array([place])))
        for name, count in differences(without, with_it, user).items():
            differ.setdefault(name, []).extend([[0.0], [float(count)]])
    secret = np.arange(2 * len(users)) % 2 == 1
    return Trial({name: np.array(rows) for name, rows in differ.items()}, secret, np.repeat(users, 2))


def differences(one: Answers, other: Answers, target: int) -> dict[str, int]:
    """Entries of all lists but the target's that differ, by column."""
    rest = np.arange(len(one.twins)) != target
    sets = [np.sort(day.twins[rest], axis=1) for day in (one, other)]
    fields = {"ranks": "twins", "percentile": "percentiles", "chance": "chances", "score": "scores"}
    return {
        "ids": int((sets[0] != sets[1]).sum()),
        **{name: int((getattr(one, f)[rest] != getattr(other, f)[rest]).sum()) for name, f in fields.items()},
    }


def some_targets(histories: Histories, targets: int, rng: np.random.Generator) -> Ints:
    """Users with 6 to 80 places, in random order, at most so many."""
    lengths = histories.lengths()
    return rng.permutation(np.flatnonzero((lengths >= 6) & (lengths <= 80)))[:targets]


def owners_of(histories: Histories, place: int) -> Mask:
    """[n_users] who favors a place."""
    users = np.repeat(np.arange(histories.n_users), histories.lengths())
    return np.bincount(users[histories.places == place], minlength=histories.n_users) > 0


def emptied(histories: Histories, users: Ints) -> Histories:
    """These users' histories cut to one place: they stay where they are, and nothing is learned of them."""
    owner = np.repeat(np.arange(histories.n_users), histories.lengths())
    first = np.zeros(len(histories.places), bool)
    first[histories.offsets[:-1]] = True
    return histories.filter(first | ~np.isin(owner, users))


def less_news(histories: Histories, share: float, rng: np.random.Generator) -> Histories:
    """The day before: a share of the favors is not there yet; nobody is left without."""
    news = rng.random(len(histories.places)) < share
    news[histories.offsets[:-1]] = False
    return histories.filter(~news)
