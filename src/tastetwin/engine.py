"""The one place that knows which engine runs DataFrames: embedded Sail by default, ``sc://`` for Apache Spark.

Both speak Spark Connect, so every stage is written once against the PySpark DataFrame API.
"""

from __future__ import annotations

import atexit
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from tastetwin.errors import MissingExtra, StoreError
from tastetwin.store import Store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


class Engine:
    """A Spark Connect session and the few things every stage does with it."""

    def __init__(self, spark: SparkSession, partitions: int) -> None:
        self.spark = spark
        self.partitions = partitions

    def read(self, store: Store, paths: Sequence[str], schema: pa.Schema) -> DataFrame:
        """Parquet files of a store as a DataFrame; with no files, an empty one of that schema."""
        if not paths:
            return self.table(schema.empty_table())
        return self.spark.read.parquet(*(store.url(path) for path in paths)).select(*schema.names)

    def table(self, table: pa.Table) -> DataFrame:
        """A small Arrow table as a DataFrame."""
        from pyspark.sql.pandas.types import from_arrow_schema

        if table.num_rows == 0:
            return self.spark.createDataFrame([], from_arrow_schema(table.schema))
        return self.spark.createDataFrame(table)

    def map_arrow(
        self,
        frame: DataFrame,
        function: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]],
        schema: pa.Schema,
    ) -> DataFrame:
        """``mapInArrow`` with the result's schema given as Arrow."""
        from pyspark.sql.pandas.types import from_arrow_schema

        return frame.mapInArrow(function, from_arrow_schema(schema))


def connect(remote: str | None, partitions: int) -> Engine:
    """A session on the given Spark Connect server, or on Sail inside this process.

    Raises:
        MissingExtra: without the 'spark' extra.
        StoreError: ENGINE-UNREACHABLE when the server does not answer.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"pyspark\\..*")
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingExtra.of("pyspark-client", "spark") from error
    address = remote or _embedded()
    try:
        spark = SparkSession.builder.remote(address).getOrCreate()
        spark.conf.set("spark.sql.session.timeZone", "UTC")
    except Exception as error:
        raise StoreError(
            "ENGINE-UNREACHABLE",
            place=address,
            value=type(error).__name__,
            rule="a Spark Connect server answers there",
            fix="start it, or leave engine.remote empty to run embedded",
        ) from error
    return Engine(spark, partitions)


@functools.cache
def _embedded() -> str:
    """Start Sail in this process, once; the address it listens on (loopback only)."""
    os.environ.setdefault("RUST_LOG", "error")
    try:
        from pysail.spark import SparkConnectServer
    except ImportError as error:
        raise MissingExtra.of("pysail", "spark") from error
    server = SparkConnectServer()
    server.start(background=True)
    atexit.register(server.stop)
    _, port = server.listening_address
    return f"sc://127.0.0.1:{port}"
