"""Training on a GPU is the training on the CPU, faster: the same lessons, the same curve, checkpoints for either."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tastetwin.config import TrainConfig
from tastetwin.model import encoder
from tastetwin.model.train import Trained, train
from tastetwin.store import Store
from tests.model import towns
from tests.model.test_workers import final, record, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="TRAINING ON A GPU IS NOT TESTED: torch sees none"),
]

TOWN, VOCABULARY = towns.histories(120, 80, 4, 14, seed=2), towns.vocabulary(80)
CONFIG = TrainConfig(
    dim=32, layers=2, width=32, heads=2, epochs=4, batch_users=16, max_length=20, dropout=0, checkpoint_steps=4
)


class Killed(Exception):
    """In place of kill -9."""


@pytest.fixture(autouse=True)
def no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device draws its own; without it both must compute the same."""
    monkeypatch.setattr(encoder, "RESIDUAL_DROPOUT", 0.0)


def trained(device: str, precision: str = "float32", folder: Path | None = None, die_at: int = -1) -> Trained:
    def on_step(step: int, total: int, loss: float) -> None:
        if step == die_at:
            raise Killed

    config = CONFIG.model_copy(update={"device": device, "precision": precision})
    return train(TOWN, VOCABULARY, config, None, Store(folder) if folder else None, on_step)


@pytest.fixture(scope="module")
def by_cpu() -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "RESIDUAL_DROPOUT", 0.0)
        return trained("cpu")


def test_it_learns_the_same_in_float32(by_cpu: Trained) -> None:
    found = trained("cuda")
    assert len(by_cpu.record.losses) >= 20
    assert found.record.losses == pytest.approx(by_cpu.record.losses, rel=1e-3)
    assert found.record.validation_mrr == pytest.approx(by_cpu.record.validation_mrr, abs=0.02)
    assert found.record.ran_on == [{"since": 0, "processes": 1, "device": "cuda", "precision": "float32"}]


def test_by_itself_it_takes_the_gpu_and_bf16(by_cpu: Trained) -> None:
    """Where the hardware has it; a curve a little beside that of float32."""
    found = trained("auto", "auto")
    bf16 = torch.cuda.is_bf16_supported(False)
    assert found.record.ran_on[0]["device"] == "cuda"
    assert found.record.ran_on[0]["precision"] == ("bf16" if bf16 else "float32")
    assert found.record.losses == pytest.approx(by_cpu.record.losses, rel=0.03)


@pytest.mark.parametrize("then", ["cuda", "cpu"])
def test_a_checkpoint_goes_on_there_and_on_a_cpu(by_cpu: Trained, tmp_path: Path, then: str) -> None:
    with pytest.raises(Killed):
        trained("cuda", folder=tmp_path, die_at=10)
    found = trained(then, folder=tmp_path)
    assert found.record.losses == pytest.approx(by_cpu.record.losses, rel=1e-3)
    assert [each["device"] for each in found.record.ran_on] == ["cuda", "cpu"][: 1 if then == "cuda" else 2]
    if then == "cpu":
        assert found.record.ran_on[1]["since"] == 8


def test_what_was_trained_there_ends_on_the_cpu() -> None:
    """``Trained`` promises it, whatever computed it: export and analysis go on from there."""
    state = trained("cuda").encoder.state_dict()
    assert {value.device.type for value in state.values()} == {"cpu"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL IS NOT TESTED: one GPU")
def test_two_gpus_learn_what_one_does(tmp_path: Path) -> None:
    assert run(tmp_path / "one", 1, device="cuda") == [0]
    assert run(tmp_path / "two", 2, device="cuda") == [0, 0]
    assert record(tmp_path / "two")["losses"] == pytest.approx(record(tmp_path / "one")["losses"], rel=1e-3)
    first, second = (final(tmp_path / "two", rank) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="with two GPUs nccl connects them")
def test_two_processes_on_one_gpu_learn_what_one_does(tmp_path: Path) -> None:
    """Nccl wants a GPU for each; gloo, which they talk by here, does not, and all else is the same."""
    assert run(tmp_path / "one", 1, device="cuda") == [0]
    assert run(tmp_path / "two", 2, device="cuda", by="gloo") == [0, 0]
    assert record(tmp_path / "two")["losses"] == pytest.approx(record(tmp_path / "one")["losses"], rel=1e-3)
