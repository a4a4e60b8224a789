"""The app's state in Redis: the apps of several machines share it. How durable it is, its own settings say.

Each change is one script, which Redis runs as a whole. Scripts make up names of keys, so this is for one server (with
replicas), not for a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from tastetwin.errors import StoreError
from tastetwin.serving.app.state import DROPS, KINDS, LIMIT, Kind, full
from tastetwin.serving.redis_client import ERRORS, client_of

PREFIX: Final = "tastetwin:app:"
SECONDS: Final = 0.5
"""That one call may wait for the connection, and again for the answer."""
_ADD: Final = """
local list, holders, user, other = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('ZSCORE', list, other) then return 1 end
if redis.call('ZCARD', list) >= tonumber(ARGV[4]) then
  if ARGV[5] == '0' then return 0 end
  local oldest = redis.call('ZRANGE', list, 0, 0)[1]
  redis.call('ZREM', list, oldest)
  redis.call('SREM', holders .. oldest, user)
end
redis.call('ZADD', list, redis.call('INCR', KEYS[2]), other)
redis.call('SADD', holders .. other, user)
return 1
"""
_FORGET: Final = """
local user = ARGV[1]
for at = 2, #ARGV, 2 do
  local lists, holders = ARGV[at], ARGV[at + 1]
  for _, other in ipairs(redis.call('ZRANGE', lists .. user, 0, -1)) do redis.call('SREM', holders .. other, user) end
  for _, holder in ipairs(redis.call('SMEMBERS', holders .. user)) do redis.call('ZREM', lists .. holder, user) end
  redis.call('DEL', lists .. user, holders .. user)
end
"""
T = TypeVar("T")


class RedisState:
    """A Redis server, by its address."""

    def __init__(self, address: str) -> None:
        """Prepare a client; nothing is connected yet.

        Raises:
            UsageError: STATE-ADDRESS.
        """
        # Again once, for a connection that the server closed while it was idle.
        self._client = client_of(address, SECONDS, "STATE-ADDRESS", "app.state", retries=1, text=True)
        self._add, self._forget = self._client.register_script(_ADD), self._client.register_script(_FORGET)

    def add(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        asked: list[str | int] = [_holders(kind), user, other, LIMIT, int(DROPS[kind])]
        if not self._call(lambda: self._add(keys=[_lists(kind) + user, f"{PREFIX}number"], args=asked)):
            raise full(kind)

    def remove(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        pipeline = self._client.pipeline(transaction=True)
        pipeline.zrem(_lists(kind) + user, other)
        pipeline.srem(_holders(kind) + other, user)
        self._call(pipeline.execute)

    def of(self, kind: Kind, user: str) -> list[str]:
        """As ``State`` says."""
        return self._call(lambda: list(self._client.zrevrange(_lists(kind) + user, 0, -1)))

    def forget(self, user: str) -> None:
        """As ``State`` says."""
        named = [user, *(name(kind) for kind in KINDS for name in (_lists, _holders))]
        self._call(lambda: self._forget(args=named))

    def close(self) -> None:
        """As ``State`` says."""
        self._client.close()

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ERRORS as error:
            raise StoreError(
                "STATE-UNAVAILABLE",
                place="app.state",
                value=type(error).__name__,
                rule="a Redis server that answers, for the app's state",
                fix="see whether it runs, and its log",
            ) from error


def _lists(kind: Kind) -> str:
    """Whom a user has on their list: the user's id follows."""
    return f"{PREFIX}{kind}:"


def _holders(kind: Kind) -> str:
    """Who has a user on their list: the user's id follows."""
    return f"{PREFIX}{kind}-by:"
