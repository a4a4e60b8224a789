"""User tokens: what the product's server gives its client, so that it may ask for one user's own things for a while.

Signed, not encrypted: a token tells the client nothing but its own user's id. What it opens ends with its time; to end
all at once, replace the secret.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tastetwin.errors import MissingExtra, StoreError
from tastetwin.serving.keys import Caller, Keys

try:
    from itsdangerous import BadData, URLSafeSerializer
except ImportError as error:
    raise MissingExtra.of("itsdangerous", "serve") from error

PREFIX: Final = "ttu_"
"""So that scanners for leaked secrets know one when they see it."""
PURPOSE: Final = "tastetwin.app.me.1"
"""Part of what is signed: a signature made for something else opens nothing here."""
SCOPE: Final = "me"
NAME: Final = "user"
"""Of every user in logs and metrics, which are not to tell them apart."""
MIN_SECRET: Final = 32
MAX_TOKEN: Final = 8_192


@dataclass(frozen=True)
class UserCaller(Caller):
    """A user of the product, who may reach their own things."""

    user: str

    @property
    def bucket(self) -> str:
        """The user's, whichever of their tokens they show; no name of a key has a colon."""
        return f"{NAME}:{self.user}"


class Tokens:
    """Makes and checks tokens.

    Args:
        signing_keys: oldest first; the last one signs, all are accepted.
        per_second: requests of one user, in the long run.
        burst: at once.
        clock: seconds since 1970.
    """

    def __init__(
        self, signing_keys: Sequence[str], per_second: float, burst: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._serializer = URLSafeSerializer(
            list(signing_keys),
            salt=PURPOSE,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self._per_second, self._burst, self._clock = per_second, burst, clock

    def make(self, user: str, seconds: int) -> str:
        """A token that opens the user's own things for so long."""
        made = self._serializer.dumps([user, int(self._clock()) + seconds])
        return PREFIX + (made if isinstance(made, str) else made.decode())

    def caller(self, presented: str) -> UserCaller | None:
        """Whose token that is; None for anything else than a token of ours whose time is not over."""
        if not presented.startswith(PREFIX) or len(presented) > MAX_TOKEN:
            return None
        try:
            user, ends = self._serializer.loads(presented.removeprefix(PREFIX))
        except BadData:
            return None
        if self._clock() >= ends:
            return None
        return UserCaller(NAME, frozenset({SCOPE}), self._per_second, self._burst, user)


class AppCallers:
    """Who asks the app: the product's server by its API key, or a user by their token."""

    def __init__(self, keys: Keys, tokens: Tokens) -> None:
        self._keys, self._tokens = keys, tokens

    def caller(self, presented: str) -> Caller | None:
        """As ``Callers`` says."""
        return self._tokens.caller(presented) or self._keys.caller(presented)


def signing_keys(path: Path) -> list[str]:
    """One a line, the oldest first; a file that is not there is made, with one, readable by its owner only.

    Raises:
        StoreError: SECRET-FILE.
    """
    try:
        if not path.exists():
            _make(path)
        found = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, getattr(error, "strerror", None) or "not text") from error
    if not found or min(map(len, found)) < MIN_SECRET:
        raise _unusable(path, "empty" if not found else "too short")
    return found


def _make(path: Path) -> None:
    """Appears whole; of several processes at once, one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(secrets.token_urlsafe(MIN_SECRET) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    with suppress(FileExistsError):
        path.hardlink_to(aside)
    aside.unlink()


def _unusable(path: Path, value: str) -> StoreError:
    return StoreError(
        "SECRET-FILE",
        place=str(path),
        value=value,
        rule=f"a file of secrets, one a line, each of at least {MIN_SECRET} characters",
        fix="correct --secret or the file's rights; name a file that is not there, and one is made",
    )
