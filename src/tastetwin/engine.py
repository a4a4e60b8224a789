"""The one place that knows which engine runs DataFrames: embedded Sail by default, ``sc://`` for Apache Spark.

Both speak Spark Connect, so every stage is written once against the PySpark DataFrame API.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import socket
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
import pyarrow as pa

from tastetwin.errors import MissingExtra, StoreError, TasteTwinError
from tastetwin.masks import without_token
from tastetwin.store import Store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


_DEFAULT_PORT: Final = 15002
_SESSION_SECONDS: Final = 30 * 24 * 3600
_RETRIES: Final = 10
_MAX_BACKOFF_MS: Final = 4_000
_KNOCK_SECONDS: Final = 10.0
_TOLD: Final = pa.schema([pa.field("text", pa.string()), pa.field("problem", pa.string())])


class Engine:
    """A Spark Connect session and the few things every stage does with it."""

    def __init__(self, spark: SparkSession, partitions: int, is_embedded: bool) -> None:
        self.spark = spark
        self.partitions = partitions
        self.is_embedded = is_embedded

    def close(self) -> None:
        """End the session; nothing made of it can be used afterwards."""
        self.spark.stop()

    def read(self, store: Store, paths: Sequence[str], schema: pa.Schema) -> DataFrame:
        """Parquet files of a store as a DataFrame; with no files, an empty one of that schema.

        A column that a file of an earlier version does not have is null.
        """
        from pyspark.sql.pandas.types import from_arrow_schema

        if not paths:
            return self.table(schema.empty_table())
        reader = self.spark.read.schema(from_arrow_schema(schema))
        return reader.parquet(*(self._literal(store.url(path)) for path in paths))

    def _literal(self, path: str) -> str:
        """The path for the engine's reader, which takes it for a glob; Sail's knows no ``\\[``, Hadoop's no ``[[]``."""
        return re.sub(r"([*?\[{])", r"[\1]" if self.is_embedded else r"\\\1", path)

    def table(self, table: pa.Table) -> DataFrame:
        """A small Arrow table as a DataFrame."""
        from pyspark.sql.pandas.types import from_arrow_schema

        if table.num_rows == 0:
            return self.spark.createDataFrame([], from_arrow_schema(table.schema))
        return self.spark.createDataFrame(table)

    def gather(self, frame: DataFrame, function: Callable[[Iterator[pa.RecordBatch]], Iterator[str]]) -> Iterator[str]:
        """The texts that workers make of a frame's batches; an error of ours is raised here as it was raised there.

        Engines wrap a worker's exception in one of their own, with a stack trace in place of the code and the fix.
        """
        for row in self.map_arrow(frame, functools.partial(_tell, function), _TOLD).toLocalIterator():
            if row["problem"] is not None:
                kind, problem = orjson.loads(row["problem"])
                raise next(each for each in TasteTwinError.__subclasses__() if each.__name__ == kind)(**problem)
            yield row["text"]

    def each(self, items: Sequence[str], job: Callable[[str], str]) -> Iterator[str]:
        """What workers tell of independent items, in any order: a task each on a cluster, which starts what it can.

        The embedded engine starts all of its partitions at once, so it gets as many as there are cores. It cannot deal
        out single rows, only hash them, and Spark's hash would leave a third of the partitions empty.
        """
        if not items:
            return
        frame = self.table(pa.table({"item": list(items)}))
        if self.is_embedded:
            frame = frame.repartition(min(len(items), os.cpu_count() or 1), "item")
        else:
            frame = frame.repartition(len(items))
        yield from self.gather(frame, functools.partial(_each, job))

    def map_arrow(
        self,
        frame: DataFrame,
        function: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]],
        schema: pa.Schema,
    ) -> DataFrame:
        """``mapInArrow`` with the result's schema given as Arrow."""
        from pyspark.sql.pandas.types import from_arrow_schema

        return frame.mapInArrow(function, from_arrow_schema(schema))


def _tell(
    function: Callable[[Iterator[pa.RecordBatch]], Iterator[str]], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The worker's side of ``Engine.gather``."""
    try:
        for text in function(batches):
            yield pa.record_batch([pa.array([text]), pa.nulls(1, pa.string())], schema=_TOLD)
    except TasteTwinError as error:
        problem = orjson.dumps([type(error).__name__, asdict(error.problem)]).decode()
        yield pa.record_batch([pa.nulls(1, pa.string()), pa.array([problem])], schema=_TOLD)
        for _ in batches:  # an engine may take unread input for a broken worker
            pass


def _each(job: Callable[[str], str], batches: Iterator[pa.RecordBatch]) -> Iterator[str]:
    """The worker's side of ``Engine.each``."""
    for batch in batches:
        yield from map(job, batch.column("item").to_pylist())


def connect(remote: str | None, partitions: int) -> Engine:
    """A session on the given Spark Connect server, or on Sail inside this process.

    Raises:
        MissingExtra: without the 'spark' extra.
        StoreError: ENGINE-UNREACHABLE when the server does not answer.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"pyspark\..*")
    try:
        import pyspark

        # Without it the client looks for a Spark installation and exits when there is none (in `python -c`, say).
        os.environ.setdefault("SPARK_HOME", str(Path(pyspark.__file__).parent))
        from pyspark.sql import SparkSession
        from pyspark.sql.connect.client.retries import DefaultPolicy
    except ImportError as error:
        raise MissingExtra.of("pyspark-client", "spark") from error
    address = remote or _embedded()
    try:
        _knock(address)
        spark = SparkSession.builder.remote(address).create()
        patience = [DefaultPolicy(max_retries=_RETRIES, max_backoff=_MAX_BACKOFF_MS)]
        # An embedded server that is gone (it takes ctrl-C for itself) does not come back.
        spark.client.set_retry_policies(patience if remote else [])
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    except Exception as error:
        raise StoreError(
            "ENGINE-UNREACHABLE",
            place=without_token(address),
            value=type(error).__name__,
            rule="a Spark Connect server answers there",
            fix="start it, or leave engine.remote empty to run embedded",
        ) from error
    return Engine(spark, partitions, is_embedded=not remote)


def _knock(address: str) -> None:
    """See that somebody listens: the client itself goes on trying for ten minutes.

    Raises:
        OSError, ValueError: nobody does, or the address is none.
    """
    url = urllib.parse.urlsplit(address)
    socket.create_connection((url.hostname or "", url.port or _DEFAULT_PORT), timeout=_KNOCK_SECONDS).close()


@functools.cache
def _embedded() -> str:
    """Start Sail in this process, once; the address it listens on (loopback only)."""
    os.environ.setdefault("RUST_LOG", "error")
    # Its own limit ends a session that is idle for minutes, as it is while lists are searched on the driver.
    os.environ.setdefault("SAIL_SPARK__SESSION_TIMEOUT_SECS", str(_SESSION_SECONDS))
    try:
        from pysail.spark import SparkConnectServer
    except ImportError as error:
        raise MissingExtra.of("pysail", "spark") from error
    server = SparkConnectServer()
    server.start(background=True)
    atexit.register(server.stop)
    _, port = server.listening_address
    return f"sc://127.0.0.1:{port}"
