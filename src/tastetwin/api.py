"""The Python interface: the same verbs as the command line, with frames in and Arrow tables out.

Users and places go in and come back under the source's own ids. Results are ``pyarrow.Table``; ``polars.from_arrow``
and ``.to_pandas()`` turn them into what you use.

>>> from tastetwin import TasteTwin                                      # doctest: +SKIP
>>> tt = TasteTwin("store")                                              # doctest: +SKIP
>>> tt.run({"reviews": reviews, "places": places}, date="2026-11-22")    # doctest: +SKIP
>>> tt.similar("42", k=10)                                               # doctest: +SKIP
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from tastetwin.config import Config
from tastetwin.errors import UsageError
from tastetwin.generations import Manifest, read_manifest
from tastetwin.runs import Run, list_runs, parse_date, published_run
from tastetwin.schema import KINDS, TWINS, USER
from tastetwin.settings import from_values, load
from tastetwin.store import Store
from tastetwin.tables import read_table

if TYPE_CHECKING:
    from tastetwin.analysis.lookup import Twin, TwinLists
    from tastetwin.analysis.pair import Comparison, Step
    from tastetwin.delivery.forget import Receipt
    from tastetwin.delivery.load import Loaded

Events = str | os.PathLike[str] | Mapping[str, Any]
"""A folder, URL or ``mongodb://`` address; or frames (polars, pandas, Arrow) by kind: reviews, likes, places."""

EVIDENCE = TWINS.append(pa.field("evidence", pa.string()))


class TasteTwin:
    """A store and what can be asked of it."""

    def __init__(
        self, store: str | os.PathLike[str], config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None
    ) -> None:
        """Name a store (made by the first ``run``) and the settings.

        Settings are a ``Config``, sections of keys (``{"train": {"epochs": 3}}``), a file, or None for the defaults.

        Raises:
            UsageError: CONFIG-FILE, CONFIG-INVALID.
        """
        self._root = store
        self.config = _config(config)

    @property
    def store(self) -> Store:
        """The store.

        Raises:
            StoreError: NO-STORE before the first ``run``.
        """
        return Store.open(self._root)

    def run(self, events: Events, date: date | str | None = None, *, again: bool = False) -> Run:
        """The whole daily job; see ``tastetwin run``.

        Raises:
            TasteTwinError: from any stage; what was published stays.
        """
        from tastetwin.pipeline import run_day

        with _as_source(events) as source:
            return run_day(Store.create(self._root), source, _day(date), self.config, again=again)

    def similar(self, user: str, k: int = 10, language: str = "en") -> pa.Table:
        """A user's ``k`` twins: the columns of ``twins()`` and evidence in ``language`` (en, ko); k at least 1.

        Raises:
            UsageError: BAD-K, LANGUAGE, NOT-PUBLISHED, UNKNOWN-USER, TOO-FEW-FAVORS, NO-TWINS.
        """
        return _with_evidence(user, self._lists(k, language).twins(str(user), k))

    def near(self, user: str, k: int = 10) -> pa.Table:
        """Twins of the same area first: searched afresh with more weight on the home part; as ``similar``."""
        return _with_evidence(user, self._lists(k).near(str(user), k))

    def far(self, user: str, k: int = 10) -> pa.Table:
        """Twins who live elsewhere and share the taste, searched afresh; as ``similar``."""
        return _with_evidence(user, self._lists(k).far(str(user), k))

    def niche(self, user: str, k: int = 10) -> pa.Table:
        """Of the first 5 k in the list, those with the most unusual taste; as ``similar``."""
        return _with_evidence(user, self._lists(k).niche(str(user), k))

    def mainstream(self, user: str, k: int = 10) -> pa.Table:
        """Of the first 5 k in the list, those who favor what most people favor; as ``similar``."""
        return _with_evidence(user, self._lists(k).mainstream(str(user), k))

    def compare(self, user: str, other: str, language: str = "en") -> Comparison:
        """What two users have in common, what they have not, and without which visits they would not match.

        Raises:
            UsageError: SAME-USER, LANGUAGE, NOT-PUBLISHED, UNKNOWN-USER, TOO-FEW-FAVORS.
        """
        from tastetwin.analysis.pair import Pair

        return Pair(self._lists(1, language), str(user), str(other)).compare()

    def why_not(self, user: str, other: str) -> list[Step]:
        """Every condition for ``other`` to be in the list of ``user``, and whether it holds; errors as ``compare``."""
        from tastetwin.analysis.pair import Pair

        return Pair(self._lists(1), str(user), str(other)).why_not()

    def _lists(self, k: int, language: str = "en") -> TwinLists:
        if k < 1:
            raise UsageError("BAD-K", place="similar", value=k, rule="at least one twin", fix="k=10")
        from tastetwin.analysis.lookup import TwinLists
        from tastetwin.analysis.sentences import language_of

        return TwinLists(self.store, published_run(self.store), language_of(language))

    def twins(self) -> pa.Table:
        """All published lists, users ascending: user_idno, rank, twin_idno, score, percentile, taste, home, chance."""
        from tastetwin.analysis.rows import ranked_anew
        from tastetwin.privacy.opt_out import read_opt_outs

        table = read_opt_outs(self.store).without(
            read_table(self.store, self._analysis(), "twins", TWINS), USER, "twin_idno"
        )
        return ranked_anew(table.sort_by([(USER, "ascending"), ("rank", "ascending")]))

    def vectors(self) -> pa.Table:
        """All published taste vectors: columns user_idno, vector (unit length); users ascending."""
        from tastetwin.analysis.stored import read_vectors_table
        from tastetwin.privacy.opt_out import read_opt_outs

        table = read_vectors_table(self.store, self._analysis().paths("vectors"))
        return read_opt_outs(self.store).without(table, USER).sort_by(USER)

    def embed(self, events: Events) -> tuple[pa.Table, list[str]]:
        """Vectors for the users of any events by the published model, and the users it can say nothing of."""
        from tastetwin.delivery.embed import embed
        from tastetwin.engine import connect

        engine = connect(self.config.engine.remote, self.config.engine.partitions)
        with _as_source(events) as source:
            found = embed(engine, self.store, source, _day(None), self.config)
        return found.vectors, found.unusable

    def sql(self, statement: str) -> pa.Table:
        """DuckDB SQL over the views of ``tastetwin sql``: see docs/reference/tables.md."""
        from tastetwin.delivery.sql import query

        return query(self.store, statement)

    def load(self, to: str) -> Loaded:
        """Load the published lists into the database at ``to``; see ``tastetwin load``.

        Raises:
            UsageError: NOT-PUBLISHED, DATABASE-ADDRESS.
            StoreError: DATABASE-UNREACHABLE and others, see ``delivery.load.load_published``.
        """
        from tastetwin.delivery.load import load_published

        return load_published(self.store, to)

    def opt_out(self, *users: str) -> None:
        """Show these users to nobody from now on, as neither a twin nor a user with twins."""
        from tastetwin.evaluation.reports import clean_reports
        from tastetwin.privacy.opt_out import opt_out

        opt_out(self.store, map(_id, users))
        clean_reports(self.store)

    def opt_in(self, *users: str) -> None:
        """Take an opt-out back: they are in the lists of the next run again.

        Raises:
            UsageError: FORGOTTEN when one of them was forgotten.
        """
        from tastetwin.privacy.opt_out import opt_in

        opt_in(self.store, map(_id, users))

    def forget(
        self,
        *users: str,
        dry_run: bool = False,
        databases: Sequence[str] = (),
        client: Path | None = None,
        home: Path | None = None,
    ) -> Receipt:
        """Erase these users from everything in the store and keep them out; see ``tastetwin forget``.

        Raises:
            StoreError: STORE-BUSY while a run is in progress; DAMAGED; STORE-UNWRITABLE, DISK-FULL; STATE-UNAVAILABLE.
        """
        from tastetwin.delivery.forget import elsewhere, forget
        from tastetwin.serving.app.forget import app_places

        besides = [*elsewhere(self.store, databases, client), *app_places(self.config.app, home)]
        return forget(self.store, [_id(user) for user in users], dry_run=dry_run, besides=besides)

    def runs(self) -> list[Run]:
        """Every run, oldest first."""
        return list_runs(self.store)

    def _analysis(self) -> Manifest:
        return read_manifest(self.store, "analyze", published_run(self.store).generation("analyze"))


def _with_evidence(user: str, twins: list[Twin]) -> pa.Table:
    rows = [(str(user), *(getattr(twin, name) for name in TWINS.names[1:]), twin.evidence.sentence) for twin in twins]
    return pa.Table.from_pylist([dict(zip(EVIDENCE.names, row, strict=True)) for row in rows], schema=EVIDENCE)


def _config(config: Config | Mapping[str, Any] | str | os.PathLike[str] | None) -> Config:
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return from_values(config, "config")
    return load(None if config is None else Path(config))


def _id(user: object) -> str:
    """A user's id as the gate takes it in: a frame with gaps has 42.0 for 42."""
    return str(int(user) if isinstance(user, float) and user.is_integer() else user).strip()


def _day(value: date | str | None) -> date:
    if value is None:
        return datetime.now(UTC).date()
    return parse_date(str(value))


@contextmanager
def _as_source(events: Events) -> Iterator[str]:
    """The address of the events; frames become JSON lines, so that they pass the same gate as everything else."""
    if isinstance(events, str | os.PathLike):
        yield os.fspath(events)
        return
    if not isinstance(events, Mapping):
        found = type(events).__name__
        rule = "a folder, an address, or frames by kind"
        raise UsageError("FRAME-KIND", place="events", value=found, rule=rule, fix='e.g. {"reviews": frame}')
    unknown = sorted(set(events) - set(KINDS))
    if unknown:
        rule = f"keys are {', '.join(KINDS)}"
        raise UsageError("FRAME-KIND", place="events", value=", ".join(unknown), rule=rule, fix="rename the key")
    with tempfile.TemporaryDirectory(prefix="tastetwin-") as folder:
        for kind, frame in events.items():
            with _told_of(kind, frame):
                _write_lines(_with_text(pa.table(frame)), Path(folder) / f"{kind}.jsonl")
        yield folder


@contextmanager
def _told_of(kind: str, frame: Any) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError, pa.ArrowInvalid) as error:
        raise UsageError(
            "FRAME-TYPE",
            place=kind,
            value=f"{type(frame).__name__}: {error}",
            rule="a polars, pandas or Arrow table, one type a column",
            fix="convert it, or write JSON lines and give their folder",
        ) from error


def _with_text(table: pa.Table) -> pa.Table:
    """Bytes as the text they are: that is how some programs write text into Parquet."""
    for at, field in enumerate(table.schema):
        if field.type in (pa.binary(), pa.large_binary(), pa.binary_view()):
            table = table.set_column(at, field.name, table.column(at).cast(pa.large_string()))
    return table


def _write_lines(table: pa.Table, path: Path) -> None:
    with path.open("wb") as lines:
        for batch in table.to_batches(max_chunksize=65_536):
            for row in batch.to_pylist():
                lines.write(orjson.dumps(row, default=str) + b"\n")
