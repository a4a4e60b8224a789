"""Addresses fit for a screen, a log or a receipt: what is secret in them is masked."""

from __future__ import annotations

import re


def without_token(address: str) -> str:
    """A Spark Connect address fit for a screen or a log: its token masked."""
    return re.sub(r"(?i)(;token=)[^;]*", r"\1***", address)


def without_password(address: str) -> str:
    """An http or redis address fit for a screen: user and password masked."""
    return re.sub(r"(?i)^((?:http|redis)s?://).*@", r"\1***@", address)


def masked(address: str) -> str:
    """A database's address without user, password and options.

    A password may hold ``/``, ``?`` or ``@`` that nobody escaped: the driver refuses such an address, and its error
    must not tell the password. An ``@`` past the ``?`` leaves no part that is known to be harmless.
    """
    scheme, _, rest = address.partition("://")
    head, _, options = rest.partition("?")
    return f"{scheme}://***" if "@" in options else f"{scheme}://{head.rpartition('@')[2]}"
