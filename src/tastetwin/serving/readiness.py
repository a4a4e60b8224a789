"""Whether a server is to be sent requests: what its door answers, and what its end of life changes."""

from __future__ import annotations

from collections.abc import Callable


class Readiness:
    """Shared by ``Door``, which answers it, and ``life``, which sets it."""

    def __init__(self, check: Callable[[], bool] = lambda: True) -> None:
        """``check`` is asked too: whether what the server answers from is there."""
        self.started = False
        """The app has started up and the socket is listened on."""
        self.draining = False
        """The process was told to end: no new connections please, and those there are close after their answer."""
        self._check = check

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.started and not self.draining and self._check()
