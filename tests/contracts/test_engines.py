"""The same code on embedded Sail and on Apache Spark gives the same files, byte for byte."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tastetwin.analysis.stage import analyze_users
from tastetwin.config import AnalyzeConfig, Config, FeaturesConfig, MartConfig
from tastetwin.engine import Engine, connect
from tastetwin.errors import InputError, StoreError
from tastetwin.features.stage import build_features
from tastetwin.generations import Manifest, read_manifest
from tastetwin.mart.stage import build_mart
from tastetwin.sources.collect import collect
from tastetwin.sources.synthetic import TownReport, write_day
from tastetwin.store import Store
from tests.conftest import DIRTY
from tests.world import QUICK, Journey

ROOT = Path(__file__).parents[2]
CONFIG = Config(mart=MartConfig(split_bytes=1 << 18), features=FeaturesConfig(relative_to_user_mean=True))
STARTED_WITHIN = 120.0


def spark_python() -> Path | None:
    """The Python of Spark's own environment."""
    found = Path(os.environ.get("TASTETWIN_SPARK_PYTHON") or ROOT / ".venv-spark" / "bin" / "python")
    return found if found.exists() and shutil.which("java") else None


@pytest.fixture(scope="module")
def spark_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Spark Connect server of two local cores, for as long as this module runs."""
    python = spark_python()
    if python is None:
        pytest.skip("NOT TESTED: the daily job on Apache Spark. It needs Java 17 and its environment: make spark-env")
    said = subprocess.run(
        [str(python), "-c", "import pyspark, sys; print(pyspark.__path__[0]); print(*sys.version_info[:2])"],
        check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    assert said[1] == "{} {}".format(*sys.version_info[:2]), "Spark's workers need this Python's minor version"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "spark.connect.grpc.binding.address": "127.0.0.1", "spark.connect.grpc.binding.port": port,
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": 2,
    }  # fmt: skip
    command = [f"{said[0]}/bin/spark-submit", "--master", "local[2]", "--driver-memory", "1g"]
    command += [word for name, value in options.items() for word in ("--conf", f"{name}={value}")]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer", "spark-internal"]
    log = tmp_path_factory.mktemp("spark") / "log"
    env = os.environ | {"SPARK_HOME": said[0], "PYSPARK_PYTHON": str(python), "PYTHONPATH": str(ROOT / "src")}
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=log.parent, start_new_session=True)
    try:
        _wait_for(port, server, log)
        yield f"sc://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"Spark did not start:\n{log.read_text()[-2000:]}")


def two_days(engine: Engine, store: Store, folders: list[Path]) -> list[Manifest]:
    """Mart and features of two days, the second on top of the first."""
    mart: Manifest | None = None
    features: Manifest | None = None
    made: list[Manifest] = []
    for number, folder in enumerate(folders):
        lake = collect(store, str(folder), DIRTY.until + timedelta(days=number), config=CONFIG.collect)
        mart = build_mart(engine, store, lake, mart, CONFIG)
        features = build_features(engine, store, mart, features, CONFIG)
        made += [mart, features]
    return made


@pytest.mark.slow
def test_both_engines_make_the_same_tables(
    engine: Engine, spark_address: str, town: TownReport, tmp_path: Path
) -> None:
    """A team starts on a laptop and moves to a cluster; nobody's twins may change because of that."""
    later = write_day(DIRTY, 1, tmp_path / "later").folder
    # The second day brings news and the whole first day again: nothing of it may count twice.
    for path in town.folder.iterdir():
        shutil.copy(path, later / path.name.replace("-0", "-again-0"))
    stores = [Store.create(tmp_path / name) for name in ("a store[1]", "spark {1}")]
    spark = connect(spark_address, engine.partitions)
    ours, theirs = (two_days(*pair, [town.folder, later]) for pair in zip((engine, spark), stores, strict=True))
    for mine, other in zip(ours, theirs, strict=True):
        assert {table: [entry.path for entry in files] for table, files in mine.tables.items()} == {
            table: [entry.path for entry in files] for table, files in other.tables.items()
        }
        for files in mine.tables.values():
            for entry in files:
                left, right = (pq.read_table(store.path(entry.path)) for store in stores)
                assert repr(left.to_pylist()) == repr(right.to_pylist()), entry.path  # NaN is not NaN
        assert mine == other, "the cells are equal, but not the bytes"


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_a_town_analyzed_in_shards_on_spark_has_the_files_of_one_process(
    spark_address: str, journey: Journey, shards: int
) -> None:
    """Encoding, the search shard by shard, the cap in rounds and the rows: nobody's twins change with the engine."""
    made = {
        stage: read_manifest(journey.store, stage, journey.first.generation(stage))
        for stage in ("features", "train", "analyze")
    }
    config = QUICK.model_copy(update={"analyze": AnalyzeConfig(shards=shards)})
    spark = connect(spark_address, 8)
    found = analyze_users(spark, journey.store, made["features"], made["train"], config, again=True)
    assert found.facts == made["analyze"].facts
    for table, entries in made["analyze"].tables.items():
        assert [entry.sha256 for entry in found.tables[table]] == [entry.sha256 for entry in entries], table


@pytest.mark.slow
def test_a_workers_error_is_told_as_ours_on_spark(spark_address: str, tmp_path: Path) -> None:
    """Whichever engine ran the task, the user reads the same code and fix."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "reviews.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00no gzip at all")
    store = Store.create(tmp_path / "store")
    lake = collect(store, str(source), DIRTY.until, config=CONFIG.collect)
    with pytest.raises(InputError, match="SOURCE-DAMAGED"):
        build_mart(connect(spark_address, 2), store, lake, None, CONFIG)


def test_an_engine_that_is_not_there_is_told_with_its_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"sc://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StoreError, match="ENGINE-UNREACHABLE") as caught:
            connect(address, 2)
    assert caught.value.problem.place == address
