"""The model gateway from the outside: its questions and answers as models, and a client that asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tastetwin.client.client import Call, Client, GatewayError

__all__ = ["Call", "Client", "GatewayError"]


def __getattr__(name: str) -> Any:
    """Import the client at first use: the models alone need nothing but pydantic."""
    if name in __all__:
        from tastetwin.client import client

        return getattr(client, name)
    raise AttributeError(name)
