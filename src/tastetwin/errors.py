"""What can go wrong, as one small tree, and the exit code of each branch.

::

    TasteTwinError            exit 1   anything below
    ├── UsageError            exit 2   the request itself: config typo, bad date, unknown user
    ├── InputError            exit 3   the source's data: empty folder, wrong type of file
    ├── StoreError            exit 4   the store: damaged, of a newer version, busy, disk full; or a database
    ├── GateRefused           exit 5   the run is sound as a program but not fit to be published
    └── MissingExtra          exit 6   an optional dependency is not installed

Interrupted by the user (ctrl-C) exits with 130. Every error says: a stable code, the place, the value, the rule and
the fix.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Problem:
    """The five things a reader needs in order to act."""

    code: str
    """Stable, upper-case with dashes, listed in docs/reference/errors.md."""
    place: str
    """The file, line, key or id where it happened."""
    value: str
    """What was found there."""
    rule: str
    """What should have been found."""
    fix: str
    """What to do now."""


class TasteTwinError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1

    def __init__(self, code: str, *, place: str, value: object = "", rule: str, fix: str = "") -> None:
        """Build the message ``code: place: value; rule; fix``; empty parts are left out."""
        self.problem = Problem(code, place, str(value), rule, fix)
        super().__init__(str(self))

    def __str__(self) -> str:
        p = self.problem
        found = f"{p.place}: {p.value}" if p.value else p.place
        return f"{p.code}: {'. '.join(part for part in (found, p.rule, p.fix) if part)}"


class UsageError(TasteTwinError):
    """The request cannot be carried out as it was put."""

    exit_code = 2


class InputError(TasteTwinError):
    """The source's data cannot be used."""

    exit_code = 3


class StoreError(TasteTwinError):
    """The store, or a database that lists go to, cannot be read or written."""

    exit_code = 4


class GateRefused(TasteTwinError):
    """The run must not be published."""

    exit_code = 5


class MissingExtra(TasteTwinError):
    """An optional dependency is needed and absent."""

    exit_code = 6

    @classmethod
    def of(cls, module: str, extra: str) -> MissingExtra:
        """For ``module``, which comes with ``tastetwin[extra]``."""
        return cls(
            "MISSING-EXTRA",
            place=module,
            value="not installed",
            rule=f"this step needs the '{extra}' extra",
            fix=f"pip install 'tastetwin[{extra}]'",
        )
