"""The full benchmark on several folders and on synthetic towns of several sizes, as one page of tables.

    python benchmarks/quality.py [FOLDER...] [--towns 1000 10000] [--seeds 5] [--without METHOD...] [--to results/]

Each step is kept under ``--to``, so that a stopped benchmark goes on where it was; so are the record (JSON) and the
tables (Markdown) of each dataset. The 2021 recipe is most of the time: leave it out for quick figures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path

import orjson

from tastetwin.config import Config
from tastetwin.engine import Engine, connect
from tastetwin.evaluation.benchmark import Benchmark, Measurement, all_methods
from tastetwin.evaluation.dataset import load_dataset
from tastetwin.evaluation.tables import as_tables
from tastetwin.sources.synthetic import TownConfig, write_town


def markdown(found: Benchmark, seconds: float) -> str:
    """The tables of one dataset."""
    lines = [
        f"## {found.dataset}",
        "",
        f"{found.users:,} users, {found.places:,} places, {found.favors:,} favors; {len(found.seeds)} seeds, "
        f"{seconds:,.0f} s.",
        "",
    ]
    for title, columns, rows in as_tables(found):
        lines += [f"**{title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def sources(folders: list[Path], towns: list[int], scratch: Path) -> Iterator[tuple[Path, date]]:
    """Every folder with the logical date to read it by."""
    for folder in folders:
        yield folder, date.today()
    for users in towns:
        config = TownConfig(users=users)
        yield write_town(config, scratch / f"town-{users}").folder, config.until


def measure(engine: Engine, folder: Path, day: date, options: argparse.Namespace) -> None:
    """One dataset: run, keep, print."""
    config = Config()
    dataset = load_dataset(engine, str(folder), day, config)
    methods = {name: fit for name, fit in all_methods(config.train).items() if name not in options.without}
    to: Path = options.to
    to.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(dataset, config, options.seeds, methods, keep=to, tell=partial(tell, folder.name))
    measurement.run()
    found = measurement.found()
    page = markdown(found, sum(measurement.steps.done.values()))
    (to / f"{found.dataset}.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    (to / f"{found.dataset}.md").write_text(page)
    print(page, flush=True)


def tell(dataset: str, what: str) -> None:
    """One line, at once."""
    print(f"  {dataset}: {what}", flush=True)


def main() -> None:
    """Parse arguments, run each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--towns", nargs="*", type=int, default=[], help="users of each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], metavar="METHOD", help="methods to leave out, by name")
    parser.add_argument("--to", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    engine = connect(None, Config().engine.partitions)
    with tempfile.TemporaryDirectory() as scratch:
        for folder, day in sources(options.folders, options.towns, Path(scratch)):
            measure(engine, folder, day, options)


if __name__ == "__main__":
    main()
