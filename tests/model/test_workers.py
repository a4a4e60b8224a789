"""Two processes train the model that one trains."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file

from tastetwin.generations import read_manifest
from tastetwin.model.workers import Workers
from tests.model import towns
from tests.world import QUICK, Journey

pytestmark = pytest.mark.slow

ROOT: Final = Path(__file__).parents[2]
CONFIG = towns.MANY_STEPS

CHILD = """
import functools, gc, json, os, signal, sys
from pathlib import Path
import torch.distributed as dist
from safetensors.torch import save_file
from tastetwin.model import encoder, step
from tastetwin.model.train import train
from tastetwin.store import Store
from tests.model import towns
from tests.model.test_workers import CONFIG

gc.disable()
folder, dropout, die_at = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
device, by = sys.argv[5:]
if by:
    dist.init_process_group = functools.partial(lambda begin, _, **how: begin(by, **how), dist.init_process_group)
rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
nan_at, calls, whole_loss = json.loads(sys.argv[4]), 0, step.whole_loss
def sometimes_nan(*given):
    global calls
    calls += 1
    return whole_loss(*given) * (float("nan") if calls in nan_at and rank == world - 1 else 1)
step.whole_loss = sometimes_nan
if not dropout:
    encoder.RESIDUAL_DROPOUT = 0.0
def on_step(step, total, loss):
    if step == die_at and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
config = CONFIG.model_copy(update={"dropout": dropout, "device": device, "precision": "float32"})
town, vocabulary = towns.histories(90, 40, 4, 12, seed=2), towns.vocabulary(40)
result = train(town, vocabulary, config, None, Store(folder), on_step)
threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
(folder / f"threads-{rank}.json").write_text(json.dumps(threads))
state = {name: value.contiguous() for name, value in result.encoder.state_dict().items()}
save_file(state, folder / f"final-{rank}.safetensors")
(folder / f"record-{rank}.json").write_text(json.dumps(vars(result.record)))
"""


def run(
    folder: Path,
    processes: int,
    dropout: float = 0.0,
    die_at: int = -1,
    nan_at: tuple[int, ...] = (),
    device: str = "cpu",
    by: str = "",
) -> list[int]:
    """Exit codes of so many processes that train together, as torchrun would start them.

    The last of them is killed after step ``die_at``, and finds NaN in the steps ``nan_at``. They talk by what the
    product chooses, each with a GPU of its own where ``device`` is cuda; or ``by`` another way, with one GPU for all.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", CHILD, str(folder), str(dropout), str(die_at), json.dumps(nan_at)]
    command += [device, by]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(command, cwd=ROOT, env={**base, **_place(rank, processes, 0 if by else rank)})
        for rank in range(processes)
    ]
    return [child.wait(timeout=300) for child in children]


def _place(rank: int, processes: int, gpu: int) -> dict[str, str]:
    """What torchrun tells a process, which takes that GPU where it takes one."""
    return {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(gpu)}


def record(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"record-{rank}.json").read_text())
    return found


def final(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"final-{rank}.safetensors")


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one training without dropout by one process and by two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    assert run(one, 1) == [0]
    assert run(two, 2) == [0, 0]
    return one, two


def test_the_loss_curve_is_that_of_one_process(one_and_two: tuple[Path, Path]) -> None:
    """Split users, whole contrast: with dropout off, nothing but the order of sums may differ."""
    alone, together = (record(folder)["losses"] for folder in one_and_two)
    assert len(alone) >= 10
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_model_is_that_of_one_process(one_and_two: tuple[Path, Path]) -> None:
    """Gradients of every part, temperature and masked places included, add up to the whole."""
    alone, together = (final(folder) for folder in one_and_two)
    for name in alone.keys() - {"projection"}:
        assert torch.allclose(together[name].float(), alone[name].float(), atol=2e-4), name
    wanted, found = (state["projection"] @ state["projection"].T for state in (alone, together))
    assert torch.allclose(found, wanted, atol=1e-2)
    assert record(one_and_two[1])["validation_mrr"] == pytest.approx(record(one_and_two[0])["validation_mrr"], abs=0.02)


def test_every_process_ends_with_the_same_model(one_and_two: tuple[Path, Path]) -> None:
    first, second = (final(one_and_two[1], rank) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_thread_of_the_connection_outlives_the_training(one_and_two: tuple[Path, Path]) -> None:
    """One that does can abort its process at its end, and the job fails that had succeeded."""
    for rank in range(2):
        left = json.loads((one_and_two[1] / f"threads-{rank}.json").read_text())
        assert not [name for name in left if "gloo" in name or "store" in name]


def test_with_dropout_two_processes_learn_as_well(tmp_path: Path) -> None:
    """Their dropout differs from one process's, so only the outcome can be compared."""
    for processes in (1, 2):
        assert run(tmp_path / str(processes), processes, dropout=0.2) == [0] * processes
    alone, together = (record(tmp_path / name) for name in ("1", "2"))
    assert max(together["validation_mrr"].values()) == pytest.approx(max(alone["validation_mrr"].values()), abs=0.1)
    assert together["losses"][-1] == pytest.approx(alone["losses"][-1], rel=0.15)


def test_a_process_killed_leaves_a_checkpoint_to_go_on_from(one_and_two: tuple[Path, Path], tmp_path: Path) -> None:
    """Kill -9 of the one that writes nothing: the other ends with an error, and both go on to the same model."""
    codes = run(tmp_path, 2, die_at=10)
    assert codes[1] == -9
    assert codes[0] not in (0, -9)
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 8
    shutil.copytree(tmp_path, tmp_path / "alone")
    assert run(tmp_path, 2) == [0, 0]
    unbroken, resumed = final(one_and_two[1]), final(tmp_path)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    assert run(tmp_path / "alone", 1) == [0]
    assert record(tmp_path / "alone")["losses"] == pytest.approx(record(one_and_two[1])["losses"], rel=1e-5)
    two, one = ({"processes": number, "device": "cpu", "precision": "float32"} for number in (2, 1))
    assert record(one_and_two[1])["ran_on"] == record(tmp_path)["ran_on"] == [{"since": 0, **two}]
    assert record(tmp_path / "alone")["ran_on"] == [{"since": 0, **two}, {"since": 8, **one}]


LETTING_GO = """
import torch, torch.distributed as dist
from tastetwin.model.workers import workers

with workers() as group:
    for _ in range(500):
        assert group._sent(torch.zeros(100))._use_count() == 1
"""


def test_nothing_is_held_by_a_thread_once_it_is_told() -> None:
    """Gloo's thread asks for the GIL to let go, with the group's lock in hand: who ended the group with the GIL in hand
    then waited for ever, after a training that had gone well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = [
        subprocess.Popen([sys.executable, "-c", LETTING_GO], env={**os.environ, **where, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [child.wait(timeout=100) for child in children] == [0, 0]


def test_a_step_that_is_nan_for_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    """And three in a row roll all of them back; one that stepped alone would learn something else ever after."""
    nan_at = (2, 6, 7, 8)
    assert run(tmp_path / "two", 2, nan_at=nan_at) == [0, 0]
    assert run(tmp_path / "one", 1, nan_at=nan_at) == [0]
    first, second, alone = final(tmp_path / "two"), final(tmp_path / "two", 1), final(tmp_path / "one")
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in alone.keys() - {"projection"}:
        assert torch.allclose(first[name].float(), alone[name].float(), atol=2e-4), name
    told = record(tmp_path / "two")
    assert (told["skipped_steps"], told["rollbacks"]) == (4, 1)
    assert told["losses"] == pytest.approx(record(tmp_path / "one")["losses"], rel=1e-5)


def test_torchrun_makes_one_bundle_and_says_so_once(copied: Journey) -> None:
    """As the docs have it; what process 0 writes must not be written again, or fought over, by the other."""
    before = set(copied.store.names("bundles"))
    settings = {f"TASTETWIN_TRAIN__{name.upper()}": str(value) for name, value in QUICK.train.model_dump().items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tastetwin", "train", "--store", copied.store.root, "--again"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    (made,) = set(copied.store.names("bundles")) - before
    assert read_manifest(copied.store, "train", made).facts["counts"]["training_users"] > 0


def test_a_batch_of_fewer_users_than_processes() -> None:
    """Some process has nobody then, and everybody has one all the same."""
    assert [Workers(rank, 3).share_of(2).tolist() for rank in range(3)] == [[0], [1], []]
