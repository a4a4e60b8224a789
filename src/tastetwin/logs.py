"""One JSON object a line: the form in which logs are shipped. Nothing in a line names a user or place."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
import structlog

_FRAMES: Final = 12
_STAMPS: Final[tuple[Any, ...]] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def json_logger(stream: BinaryIO, **bound: object) -> Any:
    """A structlog logger of lines that all hold ``bound``, ``event``, ``level`` and ``timestamp``."""
    logger = structlog.wrap_logger(
        structlog.BytesLogger(stream),
        processors=[*_STAMPS, structlog.processors.JSONRenderer(serializer=orjson.dumps)],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=True,
    )
    return logger.bind(**bound)


def log_as_json() -> None:
    """From now on what is logged by ``logging`` and ``warnings``, libraries' too, are such lines on stderr."""
    render = structlog.processors.JSONRenderer(serializer=lambda line, **_: orjson.dumps(line, default=str).decode())
    plain = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[plain, *_STAMPS, _origin, render], foreign_pre_chain=[structlog.stdlib.add_logger_name]
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)


def origin(error: BaseException) -> dict[str, list[str]]:
    """Where an error came from; its message stays out, for it may quote a user's data."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return {
        "errors": list(_kinds(error)),
        "trace": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _origin(logger: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    error = line.pop("exc_info", None)
    return line if not error else {**line, **origin(error[1] if isinstance(error, tuple) else error)}


def _kinds(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__module__}.{type(error).__qualname__}"
        error = error.__cause__
