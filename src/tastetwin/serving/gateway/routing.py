"""Which version answers a user: by weight or by name; and which others see the same request, unseen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from tastetwin.errors import UsageError

SHOWN: Final = 100
"""Characters of an unknown version's name in an error."""


class Routes:
    """Versions with their weights; a canary is a version of small weight.

    A user stays with a version: weighted rendezvous hashing. When a weight grows, users move only to that version,
    when it shrinks only away from it, and no more of them than the change of its share.
    """

    def __init__(self, weights: Mapping[str, float], shadow: Mapping[str, float]) -> None:
        """Versions that answer, by weight, and versions that look on, by share of requests (0 to 1).

        Raises:
            UsageError: ROUTES-WEIGHTS, ROUTES-SHADOW.
        """
        if not any(weights.values()) or not all(0 <= weight < math.inf for weight in weights.values()):
            raise _wrong("ROUTES-WEIGHTS", "weights", weights, "weights from 0 up, finite, one of them above 0")
        if not all(0 <= share <= 1 for share in shadow.values()):
            raise _wrong("ROUTES-SHADOW", "shadow", shadow, "shares from 0 to 1")
        self.versions = frozenset(weights) | frozenset(shadow)
        """All that must be loaded; one of weight 0 answers those who ask for it by name."""
        self._weights = {version: weight for version, weight in weights.items() if weight > 0}
        self._shadow = {version: shadow[version] for version in sorted(shadow)}

    def choose(self, sticky_key: bytes, asked: str | None) -> str:
        """The version that answers.

        Args:
            sticky_key: who asks; the same key meets the same version while the weights stay.
            asked: a version by name, from the request's header; None = by weight.

        Raises:
            UsageError: UNKNOWN-VERSION.
        """
        if asked is None:
            return min(self._weights, key=lambda version: (self._lateness(version, sticky_key), version))
        if asked not in self.versions:
            raise UsageError(
                "UNKNOWN-VERSION",
                place="version",
                value=asked[:SHOWN],
                rule="a version that is loaded",
                fix="leave the header out, or name one that GET /v1/models lists",
            )
        return asked

    def shadows(self, request_key: bytes) -> list[str]:
        """The versions that see this request too, by share; may name the one that answers."""
        return [name for name, share in self._shadow.items() if _uniform(b"shadow", name, request_key) < share]

    def weight(self, version: str) -> float:
        """Of a version; 0 of one that answers by name alone, or unseen."""
        return self._weights.get(version, 0.0)

    def _lateness(self, version: str, sticky_key: bytes) -> float:
        """When this version's clock rings first, its rate being the weight: the first of all to ring answers."""
        return -math.log(_uniform(b"choose", version, sticky_key)) / self._weights[version]


def _uniform(purpose: bytes, version: str, key: bytes) -> float:
    """A number within (0, 1), evenly spread over keys and independent between versions and purposes."""
    name = version.encode()
    digest = blake2b(len(name).to_bytes(4, "little") + name + key, digest_size=8, person=purpose).digest()
    return (int.from_bytes(digest, "little") % (1 << 52) + 0.5) / (1 << 52)


def _wrong(code: str, key: str, value: Mapping[str, float], rule: str) -> UsageError:
    return UsageError(code, place=f"gateway.{key}", value=dict(value), rule=rule, fix=f"correct gateway.{key}")
