"""Who hears of a task that failed for good, and of a day that is late: one JSON message to a web hook."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from airflow.sdk import BaseNotifier, Connection, Context

TIMEOUT = 10.0
"""Seconds."""


class Alert(BaseNotifier):
    """Posts to the host (a whole URL) of an Airflow connection, with its password, if any, as bearer token.

    The message has ``text``, as chat systems' incoming hooks want it, and the same facts by name. It holds no error
    text and nothing of a log: those may speak of people.
    """

    template_fields = ("connection",)

    def __init__(self, connection: str, what: str, context: Context | None = None) -> None:
        super().__init__(context)
        self.connection = connection
        self.what = what

    def notify(self, context: Context) -> None:
        """Send, from a worker.

        Raises:
            httpx.HTTPError: the hook did not take it; Airflow logs that.
        """
        self._post(Connection.get(self.connection), context)

    async def async_notify(self, context: Context) -> None:
        """Send, from the triggerer."""
        connection = await Connection.async_get(self.connection)
        await asyncio.to_thread(self._post, connection, context)

    def _post(self, connection: Any, context: Context) -> None:
        headers = {"authorization": f"Bearer {connection.password}"} if connection.password else {}
        answer = httpx.post(connection.host, json=facts(self.what, context), headers=headers, timeout=TIMEOUT)
        answer.raise_for_status()


def facts(what: str, context: Any) -> dict[str, str | int | None]:
    """Which run of which day, which task and try."""
    task, run = context.get("ti"), context.get("dag_run")
    said = {
        "dag": _of(task, "dag_id") or _of(run, "dag_id"),
        "task": _of(task, "task_id"),
        "try": _of(task, "try_number"),
        "run": _of(run, "run_id") or _of(run, "dag_run_id"),
        "logical_date": str(_of(run, "logical_date") or "") or None,
        "log": _of(task, "log_url"),
    }
    where = " ".join(str(said[name]) for name in ("dag", "task", "logical_date") if said[name])
    return {"text": f"TasteTwin: {where} {what}", **said}


def _of(thing: Any, name: str) -> Any:
    """A task instance has attributes; what the triggerer is given is a mapping."""
    return thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)
