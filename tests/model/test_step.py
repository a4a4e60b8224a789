"""A step costs what its batch costs, however large the catalogue, on any hardware and in any precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tastetwin.errors import InputError
from tastetwin.features.histories import Histories
from tastetwin.model import hardware, step
from tastetwin.model.export import export_onnx
from tastetwin.model.prepare import prepare
from tastetwin.model.train import Trained, train
from tastetwin.model.workers import Workers
from tests.model import towns

CONFIG = towns.CONFIG.model_copy(update={"epochs": 4})
ALONE = Workers(0, 1)
CPU = torch.device("cpu")


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most elements that any one result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def largest_of_a_step(places: int) -> int:
    """Elements of the largest tensor that a step on users of the first 40 places makes; all else is the same."""
    town, vocabulary = towns.histories(60, 40, 2, 12, seed=1), towns.vocabulary(places)
    plan, encoder = prepare(town, vocabulary, CONFIG, ALONE, lambda phase: None)
    model = step.Objective(encoder.train(), hardware.choose(CONFIG))
    optimizer = torch.optim.AdamW(model.parameters())
    batch = step.draw(plan, plan.schedule(0)[0], 0, ALONE, CPU)
    assert batch is not None
    seen = Largest()  # type: ignore[no-untyped-call]
    with seen:
        loss = step.update(model, optimizer, plan.views[0], batch, ALONE)
    assert np.isfinite(loss)
    return seen.elements


def test_memory_of_a_step_does_not_grow_with_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million places must train as a thousand do: sampled losses, frozen tables, no gradient as large as either."""
    monkeypatch.setattr(step, "CANDIDATES", 64)
    small, large = (largest_of_a_step(places) for places in (1_000, 10_000))
    assert large <= 1.1 * small  # distinct candidates among the 64 drawn


def infinite_gradient(weight: torch.Tensor) -> torch.Tensor:
    """0, which rises without end."""
    return (weight - weight.detach()).sqrt()


def undefined_gradient(weight: torch.Tensor) -> torch.Tensor:
    """0, whose slope is 0 times infinity."""
    return (weight * 0).sqrt()


@pytest.mark.parametrize("term", [infinite_gradient, undefined_gradient])
def test_a_gradient_that_is_not_finite_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, term: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The loss may look well when its slope is not; one such update, and every weight is NaN for good."""
    town, vocabulary = towns.histories(60, 40, 2, 12, seed=1), towns.vocabulary(40)
    plan, encoder = prepare(town, vocabulary, CONFIG, ALONE, lambda phase: None)
    model, users = step.Objective(encoder.train(), hardware.choose(CONFIG)), plan.schedule(0)[0]
    optimizer = torch.optim.AdamW(model.parameters())
    batch, views = step.draw(plan, users, 0, ALONE, CPU), plan.views[plan.fold[users[0]]]
    assert batch is not None
    before, whole = {name: value.clone() for name, value in model.state_dict().items()}, step.whole_loss
    with monkeypatch.context() as patch:
        patch.setattr(step, "whole_loss", lambda *given: whole(*given) + term(encoder.log_temperature))
        assert torch.isfinite(step.whole_loss(model, views, batch, ALONE))
        assert math.isnan(step.update(model, optimizer, views, batch, ALONE))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert math.isfinite(step.update(model, optimizer, views, batch, ALONE)), "nothing of it is left for the next one"
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_what_is_drawn_hides_and_finds_the_right_places() -> None:
    """The guess at a hidden favor must be judged by that favor's own place."""
    town, vocabulary = towns.histories(60, 40, 2, 12, seed=1), towns.vocabulary(40)
    plan, _ = prepare(town, vocabulary, CONFIG, ALONE, lambda phase: None)
    batch = step.draw(plan, plan.schedule(0)[0], 0, ALONE, CPU)
    assert batch is not None
    assert torch.equal(batch.rows[batch.row_of], batch.favors.places)
    assert batch.hidden.nonzero()[:, 0].tolist() == batch.hidden_at.tolist()
    assert len(batch.hidden_at) == batch.n_hidden > 0
    assert torch.equal(batch.rows[batch.candidates][batch.targets], batch.favors.places[batch.hidden_at])


def test_shares_of_a_batch_are_the_batch() -> None:
    """Processes cut one draw among them: every user once, the same hidden favors, the same candidates."""
    town, vocabulary = towns.histories(60, 40, 2, 12, seed=1), towns.vocabulary(40)
    plan, _ = prepare(town, vocabulary, CONFIG, ALONE, lambda phase: None)
    users = plan.schedule(0)[0]
    whole = step.draw(plan, users, 3, ALONE, CPU)
    shares = [step.draw(plan, users, 3, Workers(rank, 3), CPU) for rank in range(3)]
    assert whole is not None
    assert all(share is not None and share.n_users == whole.n_users for share in shares)
    assert sum(len(share.hidden_at) for share in shares if share) == whole.n_hidden
    places = torch.cat([share.favors.places for share in shares if share])
    assert torch.equal(places.sort()[0], whole.favors.places.sort()[0])
    choices = [one.rows[one.candidates].tolist() for one in (whole, *shares) if one]
    assert all(each == choices[0] for each in choices)


def test_bf16_trains_alike_and_exports(tmp_path: Path) -> None:
    """Half the precision of products must cost next to nothing in the loss, and leave float32 weights behind."""
    town, vocabulary = towns.histories(90, 60, 3, 14, seed=1), towns.vocabulary(60)
    full, half = (_trained(town, precision) for precision in ("float32", "bf16"))
    assert full.record.losses != half.record.losses
    assert [each.record.ran_on[0]["precision"] for each in (full, half)] == ["float32", "bf16"]
    assert half.record.losses == pytest.approx(full.record.losses, rel=0.02)
    weights = half.encoder.state_dict().values()
    assert all(value.dtype != torch.bfloat16 and torch.isfinite(value.float()).all() for value in weights)
    export_onnx(half.encoder, tmp_path / "encoder.onnx")
    found = half.encode(town, 20)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-4)
    assert vocabulary.n_rows == len(half.encoder.views.bags)


def _trained(town: Histories, precision: str) -> Trained:
    return train(town, towns.vocabulary(60), CONFIG.model_copy(update={"precision": precision}))


def test_cuda_where_there_is_none_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was paid a GPU must not spend the night on the CPU without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="NO-CUDA"):
        _trained_on("cuda")
    by_itself = CONFIG.model_copy(update={"device": "auto"})
    assert hardware.choose(by_itself).device.type == "cpu"
    assert hardware.choose(by_itself).products == torch.float32


def test_more_processes_than_gpus_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun starts as many as it is told, whatever the machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for device in ("cuda", "auto"):
        with pytest.raises(InputError, match=r"NO-CUDA.*1 GPU"):
            hardware.choose(CONFIG.model_copy(update={"device": device}))
    assert hardware.choose(CONFIG).device.type == "cpu"


def _trained_on(device: str) -> Trained:
    config = CONFIG.model_copy(update={"device": device})
    return train(towns.histories(30, 40, 2, 8, seed=1), towns.vocabulary(40), config)
