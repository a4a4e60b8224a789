"""The app's state in SQLite: in a folder that the app's processes of one machine share, written through to the disk,
or in memory, gone with the process: for trials and tests.

Not LMDB, which the gateway has for its outputs: a deleted entry stays readable in LMDB's file until its page is used
again. Here what is deleted is overwritten at once, so that nothing is left of somebody who was forgotten.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tastetwin.errors import StoreError
from tastetwin.serving.app.state import DROPS, LIMIT, Kind, full

FILE: Final = "state.sqlite3"
SECONDS: Final = 1.0
"""That one change may wait for those of other processes."""
_SETTINGS: Final = ("journal_mode = TRUNCATE", "synchronous = FULL", "secure_delete = ON")
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, user TEXT NOT NULL, "
    "other TEXT NOT NULL, UNIQUE (kind, user, other))",
    "CREATE INDEX IF NOT EXISTS entry_other ON entry (other)",
    "CREATE INDEX IF NOT EXISTS entry_user ON entry (user)",
)
_OF: Final = "FROM entry WHERE kind = ? AND user = ?"


class SqliteState:
    """A folder; None = memory."""

    def __init__(self, folder: Path | None) -> None:
        """Open, or make.

        Raises:
            StoreError: STATE-UNAVAILABLE.
        """
        self._folder, self._lock = folder, threading.Lock()
        try:
            file = ":memory:" if folder is None else _file(folder)
            self._database = sqlite3.connect(file, timeout=SECONDS, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unavailable(error) from error
        with self._told_apart():
            for setting in _SETTINGS:
                self._database.execute(f"PRAGMA {setting}")
        with self._change():
            for statement in _TABLES:
                self._database.execute(statement)

    def add(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        with self._change():
            if self._database.execute(f"SELECT 1 {_OF} AND other = ?", (kind, user, other)).fetchone():
                return
            ((there,),) = self._database.execute(f"SELECT count(*) {_OF}", (kind, user))
            if there >= LIMIT:
                if not DROPS[kind]:
                    raise full(kind)
                self._database.execute(f"DELETE FROM entry WHERE number = (SELECT min(number) {_OF})", (kind, user))  # nosec B608  # a constant; values are bound
            self._database.execute("INSERT INTO entry (kind, user, other) VALUES (?, ?, ?)", (kind, user, other))

    def remove(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        with self._change():
            self._database.execute(f"DELETE {_OF} AND other = ?", (kind, user, other))

    def of(self, kind: Kind, user: str) -> list[str]:
        """As ``State`` says."""
        with self._lock, self._told_apart():
            found = self._database.execute(f"SELECT other {_OF} ORDER BY number DESC", (kind, user)).fetchall()
        return [other for (other,) in found]

    def forget(self, user: str) -> None:
        """As ``State`` says."""
        with self._change():
            self._database.execute("DELETE FROM entry WHERE user = ? OR other = ?", (user, user))

    def close(self) -> None:
        """As ``State`` says."""
        self._database.close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        """All of it or nothing, on the disk when it returns."""
        with self._lock, self._told_apart():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite has gone back by itself where the disk is full
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Errors of the database, as ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreError:
        return StoreError(
            "STATE-UNAVAILABLE",
            place=str(self._folder or "memory"),
            value=str(error),
            rule="a folder on this machine's own disk that can be written, for the app's state",
            fix="correct app.state or the folder's rights; bring back a good copy of a damaged one",
        )


def _file(folder: Path) -> Path:
    """Readable by its owner only; made if it is not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(folder / FILE, os.O_CREAT | os.O_RDWR, 0o600))
    return folder / FILE
