"""API keys: a file of their SHA-256 sums, names, scopes and rates; the keys themselves are nowhere.

A key is 256 random bits, so a fast hash is right: there is nothing to guess that a slow one would protect.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tastetwin.durable import written_aside
from tastetwin.errors import StoreError, UsageError

Scope = Literal["embed", "twins", "score", "favors", "opt-out", "app"]
"""What a caller may do: vectors; twin lists; see scores; send fresh favors; opt users out; the product's own API."""
SCOPES: Final[tuple[str, ...]] = get_args(Scope)
PREFIX: Final = "tt_"
"""So that scanners for leaked secrets know one when they see it."""
NAME: Final = r"[A-Za-z0-9._-]{1,64}"
LOOK_SECONDS: Final = 1.0
"""Between two looks at the file."""


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may."""

    name: str
    scopes: frozenset[str]
    per_second: float
    burst: int

    @property
    def bucket(self) -> str:
        """Whose requests are counted together; kept in memory only."""
        return self.name


class KeyEntry(BaseModel):
    """One key as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: list[Scope]
    per_second: float = Field(gt=0, le=1e6)
    burst: int = Field(ge=1, le=1_000_000)
    created: str

    def caller(self) -> Caller:
        """Whom the key stands for."""
        return Caller(self.name, frozenset(self.scopes), self.per_second, self.burst)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: list[KeyEntry]


class Keys:
    """Who is behind a key. The file is looked at once a second at most, and read anew when it was changed.

    Raises:
        StoreError: KEYS-FILE, at once and from ``caller``, while the file cannot be read or is damaged: then nobody
            is let in, whoever was let in before.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._seen: object = None
        self._next_look = clock() + LOOK_SECONDS
        self._callers: dict[bytes, Caller] | None = None
        self._look()

    def caller(self, presented: str) -> Caller | None:
        """Whose key that is; None for one that is unknown or no key at all.

        The look-up is by the digest of what was presented. How long it takes may depend on that digest, but nobody can
        choose a digest: to come nearer to a stored one is to find a preimage of SHA-256. So it tells nothing of keys.
        """
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look()
        if self._callers is None:
            raise _unreadable(self.path, "as of the last look")
        return self._callers.get(_digest(presented))

    def _look(self) -> None:
        before, self._callers = self._callers, None
        try:
            stat = self.path.stat()
        except OSError as error:
            raise _unreadable(self.path, error.strerror or "unreadable") from error
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._seen or before is None:
            before = {bytes.fromhex(entry.sha256): entry.caller() for entry in read_keys(self.path)}
            self._seen = seen
        self._callers = before


def read_keys(path: Path) -> list[KeyEntry]:
    """All entries of a file.

    Raises:
        StoreError: KEYS-FILE when it cannot be read or is damaged.
    """
    try:
        entries = _File.model_validate(orjson.loads(path.read_bytes())).keys
    except OSError as error:
        raise _unreadable(path, error.strerror or "unreadable") from error
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise _unreadable(path, type(error).__name__) from error
    if len({entry.name for entry in entries}) != len(entries):
        raise _unreadable(path, "a name twice")
    return entries


def add_key(path: Path, name: str, scopes: Sequence[str], per_second: float = 100.0, burst: int = 200) -> str:
    """Make a key and keep its hash; returns the key, which can be seen at no other time.

    Raises:
        UsageError: KEYS-ENTRY for a name, scope or rate that cannot be.
        StoreError: KEYS-FILE.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    fields: dict[str, Any] = {"name": name, "sha256": _digest(key).hex(), "scopes": list(scopes)}
    fields |= {"per_second": per_second, "burst": burst, "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    try:
        entry = KeyEntry(**fields)
    except ValidationError as error:
        wrong = ", ".join(f"{problem['loc'][0]} {problem['input']!r}" for problem in error.errors())
        raise _bad_entry(wrong, f"a name of {NAME}, scopes of {', '.join(SCOPES)}, and a rate above 0") from error
    with _changing(path) as entries:
        if any(each.name == name for each in entries):
            raise _bad_entry(f"{name} is there already", "names are given once")
        entries.append(entry)
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out; servers that read the file know within two seconds.

    Raises:
        UsageError: KEYS-ENTRY when there is none of that name.
        StoreError: KEYS-FILE.
    """
    with _changing(path) as entries:
        kept = [entry for entry in entries if entry.name != name]
        if len(kept) == len(entries):
            raise _bad_entry(f"{name} is not there", "the name of a key in the file")
        entries[:] = kept


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


@contextmanager
def _changing(path: Path) -> Iterator[list[KeyEntry]]:
    """The entries, to be changed in place; written back whole, readable by the owner only.

    One at a time, or a key that was shown to somebody would be lost. A secret that an orchestrator mounts is a folder
    of links, so it is the folder that is locked, not the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            entries = read_keys(path) if path.exists() else []
            yield entries
            with written_aside(path, 0o600) as handle:
                handle.write(_File(keys=entries).model_dump_json(indent=1).encode() + b"\n")
        finally:
            os.close(folder)
    except OSError as error:
        raise _unreadable(path, error.strerror or "cannot be written") from error


def _unreadable(path: Path, value: str) -> StoreError:
    return StoreError(
        "KEYS-FILE",
        place=str(path),
        value=value,
        rule="a file of API keys that can be read; until then nobody is let in",
        fix="tastetwin keys add NAME --scope SCOPE --file FILE makes one; or bring back the last good copy",
    )


def _bad_entry(value: str, rule: str) -> UsageError:
    return UsageError("KEYS-ENTRY", place="API key", value=value, rule=rule, fix="see: tastetwin keys list --file FILE")
