"""What the backend refuses, and the status that each refusal has on the wire; no import of gRPC, no tensors."""

from __future__ import annotations

from typing import Final, NamedTuple

from tastetwin.errors import TasteTwinError, UsageError


class Status(NamedTuple):
    """HTTP status, and the name of the gRPC status."""

    http: int
    grpc: str


STATUS: Final[dict[str, Status]] = {
    "OIP-MESSAGE": Status(400, "INVALID_ARGUMENT"),
    "BAD-INPUT": Status(400, "INVALID_ARGUMENT"),
    "BAD-VERSION": Status(400, "INVALID_ARGUMENT"),
    "UNKNOWN-MODEL": Status(404, "NOT_FOUND"),
    "NO-GENERATION": Status(404, "NOT_FOUND"),
    "NO-ROUTE": Status(404, "NOT_FOUND"),
    "NO-METHOD": Status(405, "UNIMPLEMENTED"),
    "TOO-LARGE": Status(413, "RESOURCE_EXHAUSTED"),
    "BACKEND-BUSY": Status(503, "UNAVAILABLE"),
    "DEADLINE-PASSED": Status(504, "DEADLINE_EXCEEDED"),
}
INTERNAL: Final = Status(500, "INTERNAL")
"""Of every other code."""


def status_of(error: TasteTwinError) -> Status:
    """The status of a refusal."""
    return STATUS.get(error.problem.code, INTERNAL)


def unknown_model(model: str, version: str) -> UsageError:
    """No such model, or no such version of it is loaded."""
    return UsageError(
        "UNKNOWN-MODEL",
        place=f"model {model[:100]!r}",
        value=f"version {version[:100]!r}" if version else "no version is loaded",
        rule="a model and a version that this backend has loaded",
        fix="see: GET /v2/models/taste",
    )


def bad_input(place: str, value: object, rule: str) -> UsageError:
    """Tensors that the protocol allows and the model does not."""
    return UsageError("BAD-INPUT", place=place, value=str(value)[:100], rule=rule, fix="see the model's metadata")


def too_large(place: str, value: object, most: int, setting: str) -> UsageError:
    """More than a request may hold."""
    return UsageError(
        "TOO-LARGE", place=place, value=value, rule=f"at most {most}", fix=f"send less, or raise {setting}"
    )


def busy(rows: int, most: int) -> UsageError:
    """The queue is full."""
    return UsageError(
        "BACKEND-BUSY",
        place="queue",
        value=f"{rows} histories wait",
        rule=f"at most {most} wait",
        fix="try again later",
    )


def deadline_passed(seconds: float) -> UsageError:
    """Nobody waits for that answer any more."""
    return UsageError(
        "DEADLINE-PASSED",
        place="request",
        value=f"{1_000 * seconds:.0f} ms",
        rule="answered before its deadline",
        fix="allow more time, or send fewer requests",
    )
