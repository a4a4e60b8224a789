"""TasteTwin's training beside RecTools' and RecBole's BERT4Rec: speed, and time to find one's other half.

    make peers-env && .venv/bin/python benchmarks/bert4rec.py FOLDER [--threads 1 2] [--seconds 120]

All learn from the same histories at width 128, 2 layers, 4 heads, at most 100 places, each in a process of its own.
Held-out users are cut in two (the disjoint twin test); every so often training stands still, the contender gives the
vectors of all halves, and training's time so far is noted. Of a peer's two ways to make a user's vector (its own, and
the mean of the states) and of cosine and CSLS the best counts, at its best moment. Ours is trained from nothing for
several numbers of epochs; its linear fits are on the clock. Targets: 3 times the histories a second of the faster
peer, and the peers' best quality in a third of their time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np

from tastetwin.config import Config
from tastetwin.engine import connect
from tastetwin.evaluation.benchmark import HOLDOUT
from tastetwin.evaluation.dataset import load_dataset
from tastetwin.evaluation.metrics import CSLS_NEIGHBOURS, reciprocal, true_twin_ranks
from tastetwin.evaluation.tasks import disjoint_pairs
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.features.holdout import choose_holdout

SEED: Final = 1
HERE: Final = Path(__file__).parent
SNAPSHOTS: Final = 8
"""Of each peer, evenly over its time."""


@dataclass(frozen=True)
class Contender:
    """A script, the environment it runs in, and its batch (for ours: epochs)."""

    name: str
    script: str
    environment: str
    size: int


OURS: Final = [Contender(f"tastetwin, {n} epochs", "tastetwin_encoder", ".venv", n) for n in (0, 1, 6)]
PEERS: Final = [
    Contender("RecTools", "rectools_bert4rec", ".venv-rectools", 64),
    Contender("RecBole", "recbole_bert4rec", ".venv-recbole", 64),
]
RECIPE: Final = Contender("our BERT of 2021", "tastetwin_bert2021", ".venv", 60)


@dataclass(frozen=True)
class Moment:
    """What a contender had reached when it had trained so long."""

    wall: float
    cpu: float
    mrr: float
    how: str


@dataclass(frozen=True)
class Course:
    """A contender's whole run."""

    contender: Contender
    loop: dict[str, float]
    """``wall``, ``cpu``, ``histories`` and ``favors`` of the steps alone, but for the first."""
    moments: list[Moment]

    def rate(self, of: str, by: str) -> float:
        """Of what the steps processed, so much a second; 0 where there were no steps."""
        return self.loop.get(of, 0) / self.loop[by]

    def best(self) -> Moment:
        """The moment of the best MRR."""
        return max(self.moments, key=lambda moment: moment.mrr)


def write_task(source: Path, day: date, folder: Path) -> None:
    """Learners and both halves of the others, as every contender reads them."""
    config = Config()
    dataset = load_dataset(connect(None, config.engine.partitions), str(source), day, config)
    histories = dataset.histories()
    rules = config.evaluate.model_copy(update={"holdout_share": HOLDOUT, "max_holdout": 10**9, "seed": SEED})
    held_out = choose_holdout(histories, rules, SEED)
    learners = histories.select(np.flatnonzero(~held_out))
    pairs = disjoint_pairs(histories, held_out, dataset.vocabulary, rules, SEED)
    parts: dict[str, Histories | Vocabulary] = {
        "learners": learners,
        "a": pairs.a,
        "b": pairs.b,
        "vocabulary": dataset.vocabulary,
    }
    for name, part in parts.items():
        arrays = {key: value.astype(str) if value.dtype == object else value for key, value in asdict(part).items()}
        np.savez(folder / f"{name}.npz", **arrays)
    print(
        f"{source.name}: {learners.n_users} learners with {learners.lengths().mean():.1f} places on average "
        f"(padded to 100 by the peers), {dataset.vocabulary.n_rows - 2} places, {pairs.n_users} pairs"
    )


def run(contender: Contender, folder: Path, threads: int, seconds: float) -> Course:
    """Train in a process of its own; ours ends by itself."""
    python = HERE.parent / contender.environment / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{python} is not there: make peers-env")
    to = folder / f"{contender.script}-{contender.size}-{threads}"
    seconds = seconds if contender in PEERS else math.inf
    numbers = {"threads": threads, "size": contender.size, "seconds": seconds, "every": seconds / SNAPSHOTS}
    command = [str(python), "-W", "ignore", str(HERE / "peers" / f"{contender.script}.py"), str(folder), str(to)]
    command += [f"--{name}={value}" for name, value in numbers.items()]
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    # RecBole leaves folders of its own where it is started.
    ended = subprocess.run(command, cwd=folder, env={**os.environ, **limits}, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{contender.name} failed:\n{ended.stderr[-4000:]}")
    return read(contender, to)


def read(contender: Contender, to: Path) -> Course:
    """Judge the vectors a contender left."""
    entries = json.loads((to / "record.json").read_text())
    moments = [
        Moment(entry["spent"]["wall"], entry["spent"]["cpu"], *max(scores(to, number)))
        for number, entry in enumerate(entries)
    ]
    first, last = entries[-1]["first"], entries[-1]["last"] or entries[-1]["spent"]
    return Course(contender, {name: last[name] - first.get(name, 0) for name in last}, moments)


def scores(to: Path, number: int) -> Iterator[tuple[float, str]]:
    """MRR of a snapshot by each way of making a vector, with CSLS and without."""
    for path in to.glob(f"{number}-*-a.npy"):
        a, b = np.load(path), np.load(path.with_name(path.name.replace("-a.npy", "-b.npy")))
        for neighbours, name in ((0, "cosine"), (CSLS_NEIGHBOURS, "CSLS")):
            way = path.name.split("-")[1]
            yield float(reciprocal(true_twin_ranks(a, b, neighbours)).mean()), f"{way}, {name}"


def show(course: Course) -> None:
    """One line of the table."""
    best = course.best()
    rates = [course.rate(*each) for each in (("histories", "wall"), ("histories", "cpu"), ("favors", "wall"))]
    rising = ", its last moment" if len(course.moments) > 1 and best is course.moments[-1] else ""
    print(
        f"  {course.contender.name:20} {rates[0]:7.0f} {rates[1]:7.0f} {rates[2]:8.0f}   "
        f"{best.mrr:.3f} ({best.how}) after {best.wall:.1f} s, {best.cpu:.1f} CPU s{rising}",
        flush=True,
    )


def compare(ours: list[Course], peers: list[Course]) -> None:
    """The two ratios of the target."""
    longest = max(ours, key=lambda course: course.contender.size)
    for by, name in (("wall", "second"), ("cpu", "CPU second")):
        fastest = max(peers, key=lambda course: course.rate("histories", by))
        ratio = longest.rate("histories", by) / fastest.rate("histories", by)
        print(f"  histories a {name}: ours {ratio:.1f} times {fastest.contender.name} (target 3)")
    end, steps = longest.moments[-1].wall, longest.loop["wall"]
    whole = longest.loop["histories"] / end
    print(
        f"  {whole:.0f} of ours a second in all: of {end:.1f} s, the steps are {steps:.1f}, fits and choices the rest"
    )
    for peer in peers:
        best = peer.best()
        reached = [course.moments[-1] for course in ours if course.moments[-1].mrr >= best.mrr]
        if not reached:
            print(f"  {peer.contender.name}'s {best.mrr:.3f} was not reached")
            continue
        soon = min(reached, key=lambda moment: moment.cpu)
        print(
            f"  {peer.contender.name}'s {best.mrr:.3f}: ours has {soon.mrr:.3f} after {soon.wall:.1f} s, "
            f"{soon.wall / best.wall:.2f} of its time, {soon.cpu / best.cpu:.2f} of its CPU time (target 0.33)"
        )


def main() -> None:
    """Every contender at each number of threads, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of events, as collect takes it")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=120, help="CPU time of training, for each peer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_task(options.source, date.today(), folder)
        for threads in options.threads:
            print(f"{threads} threads: histories a second, a CPU second, places a second; best MRR", flush=True)
            courses = {}
            for contender in [*PEERS, RECIPE, *OURS]:
                courses[contender] = run(contender, folder, threads, options.seconds)
                show(courses[contender])
            compare([courses[each] for each in OURS], [courses[each] for each in PEERS])


if __name__ == "__main__":
    main()
