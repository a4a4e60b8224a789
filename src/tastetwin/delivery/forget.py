"""forget: a person erased from every place we keep, and a receipt that says of each what was done and what remains.

From the first moment the person has opted out and is in the deny set, so nothing shows them while the rest goes on and
nothing of theirs is taken in again. Each place is searched, then cleaned; killed in between, the same command finds
what is left. Learned weights hold no id and are not made again: they serve until the next full training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from tastetwin.delivery.diff import kept_diffs, write_diff
from tastetwin.delivery.erase import Found, Users, look_in, people_of
from tastetwin.delivery.load import erase_loaded
from tastetwin.delivery.pack import FOLDER as PACKS
from tastetwin.delivery.push import targets, tombstones
from tastetwin.evaluation.reports import cleaned_reports
from tastetwin.generations import FOLDERS, fingerprint
from tastetwin.masks import masked
from tastetwin.privacy.mentions import mentions
from tastetwin.privacy.opt_out import OptOuts, deny
from tastetwin.runs import Run, list_runs, write_run
from tastetwin.store import Store, is_aside

RECEIPTS: Final = "receipts"
WITHHELD: Final = "withheld: it named somebody who was forgotten since"


@dataclass(frozen=True)
class Entry:
    """What a receipt says of one place; the fields of ``erase.Found``."""

    place: str
    searched: int
    found: int
    rewritten: int
    removed: int
    remains: str


@dataclass(frozen=True)
class Receipt:
    """What became of a request; ``receipts/<time>-<digest>.json`` in the store."""

    users: list[str]
    """SHA-256 (FIPS 180-4) of each id, its first 32 hex digits, as in the deny set."""
    at: str
    """When it was done, UTC."""
    places: list[Entry]
    format: int = 1


def elsewhere(store: Store, databases: Sequence[str], client: Path | None) -> list[Look]:
    """Every topic that was pushed to, and the given databases.

    ``databases`` are addresses as of ``load --to``, ``client`` settings of the Kafka client as of ``push --client``.

    Raises:
        UsageError: KAFKA-CLIENT.
    """
    from tastetwin.delivery.kafka import read_client

    topics = [partial(topic, target, read_client(client)) for target in targets(store)]
    return [*topics, *(partial(database, address) for address in databases)]


Look = Callable[[Store, Users], Found]
"""Looks for users in a place, and says how to erase them there."""


def forget(store: Store, users: Iterable[str], *, dry_run: bool = False, besides: Sequence[Look] = ()) -> Receipt:
    """Erase users from all that we keep; whether they are known does not matter.

    Where there is no lock (a store that is not local) no run may be in progress. With ``dry_run`` it is only said what
    would be rewritten and removed: nothing is written, nobody is opted out. ``besides`` are places outside the store
    (``elsewhere``), cleaned last.

    Returns:
        The receipt, kept in the store unless it was a dry run.

    Raises:
        StoreError: STORE-BUSY while a run is in progress: they are shown to nobody from now on, but not erased; DAMAGED
            where a manifest or table cannot be read; STORE-UNWRITABLE, DISK-FULL; what a place elsewhere raises: the
            store is clean then, and the same command tries again.
    """
    named = sorted({str(user).strip() for user in users})  # as the gate reads ids
    places = (*PLACES, *besides)
    if dry_run:
        return _receipt(named, [look(store, named) for look in places])
    deny(store, named)
    with store.writing():
        found = []
        for look in places:
            found.append(look(store, named))
            found[-1].erase()
        receipt = _receipt(named, found)
        moment = datetime.fromisoformat(receipt.at).strftime("%Y%m%dT%H%M%S%fZ")
        store.write_json(f"{RECEIPTS}/{moment}-{fingerprint(receipt.users)[:12]}.json", asdict(receipt))
    return receipt


def _receipt(users: Sequence[str], found: list[Found]) -> Receipt:
    entries = [
        Entry(each.place, each.searched, each.found, each.rewrites, each.removes, each.remains) for each in found
    ]
    return Receipt(sorted(people_of(users).names), datetime.now(UTC).isoformat(timespec="microseconds"), entries)


def _reports(store: Store, users: Users) -> Found:
    hits = cleaned_reports(store, people_of(users))

    def erase() -> None:
        for path, page in hits.items():
            store.write_bytes(path, page)

    return Found("reports", len(store.files("reports")), len(hits), len(hits), 0, "", erase)


def _runs(store: Store, users: Users) -> Found:
    """What went wrong in a run may name somebody."""
    people, runs = people_of(users), list_runs(store)
    hits = [cleaned for run in runs if (cleaned := _without_names(run, people)) != run]

    def erase() -> None:
        for run in hits:
            write_run(store, run)

    return Found("runs", len(runs), len(hits), len(hits), 0, "", erase)


def _without_names(run: Run, people: OptOuts) -> Run:
    said = [WITHHELD if mentions(text, people) else text for text in (run.error or "", *run.findings)]
    return replace(run, error=said[0] or None, findings=said[1:])


def _diffs(store: Store, users: Users) -> Found:
    people, known = people_of(users), kept_diffs(store)
    hits = [cleaned for diff in known.values() if (cleaned := diff.without(people)) != diff]

    def erase() -> None:
        for diff in hits:
            write_diff(store, diff)

    return Found("diffs", len(known), len(hits), len(hits), 0, "", erase)


def _all_of(place: str, list_files: Callable[[Store], list[str]], store: Store, users: Users) -> Found:
    """Files that go whoever is forgotten."""
    paths = list_files(store)

    def erase() -> None:
        for path in paths:
            store.remove(path)

    return Found(place, len(paths), 0, 0, len(paths), "", erase)


_REMAINS: Final = {
    "collect": "the source's own copy; its lines of theirs are held back whenever it is collected again",
    "features": "counts per place that include theirs, until features are made again",
    "train": "no ids; what the weights learnt, until the next full training (train.refit_days), in: {generations}",
    "analyze": "counts per place, of lists and fitted numbers that include theirs, until the analysis is made again",
    "evaluate": "a keyed hash of the id where they were held out, until the evaluation is pruned (deliver.keep_runs)",
}

PLACES: Final[tuple[Look, ...]] = (
    *(partial(look_in, stage, _REMAINS.get(stage, "")) for stage in FOLDERS),
    partial(_all_of, "checkpoints", lambda store: store.files("checkpoints")),
    partial(_all_of, "packs", lambda store: store.files(PACKS)),
    _reports,
    _runs,
    _diffs,
    partial(
        _all_of,
        "unfinished writes",
        lambda store: [path for path in store.files("") if is_aside(path.rpartition("/")[2])],
    ),
)
"""Every place of the store where a person may be, in the order in which they are cleaned."""


def topic(target: str, client: dict[str, str], store: Store, users: Users) -> Found:
    """A Kafka topic that was pushed to: a tombstone for each of them, known there or not.

    Raises:
        StoreError: KAFKA-... when not every tombstone was confirmed.
        MissingExtra: without confluent-kafka.
    """

    def erase() -> None:
        from tastetwin.delivery.kafka import Address, Topic

        tombstones(store, target, Topic(Address.of(target), client), users)

    remains = (
        "their last message, until the broker compacts the topic; they stay in lists of others until the next push"
    )
    return Found(target, 1, len(users), len(users), 0, remains, erase)


def database(address: str, store: Store, users: Users) -> Found:
    """A database that was loaded: rows of theirs and their appearances, in the version shown and in the kept one.

    Raises:
        StoreError, UsageError, MissingExtra: as ``load.erase_loaded``.
    """
    remains = "what the database keeps of deleted rows (dead tuples, logs, backups)"
    erase = partial(erase_loaded, address, users)
    return Found(masked(address), 1, len(users), len(users), 0, remains, erase)
