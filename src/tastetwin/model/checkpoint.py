"""Checkpoints of a training in progress: written aside, fsynced, renamed; tensors in safetensors, the rest in JSON.

A resumed training continues bit for bit: randomness is drawn from (seed, step), so weights, optimiser state and the
number of steps done are all there is to keep.
"""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tastetwin.durable import fsync
from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.files import CHECKPOINT
from tastetwin.model.workers import Workers

TENSORS: Final = "checkpoint-{step}.safetensors"
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


class Progressing(Protocol):
    """A record of training that a checkpoint carries along."""

    losses: list[float]
    skipped_steps: int
    rollbacks: int


def fingerprint(histories: Histories, vocabulary: Vocabulary) -> str:
    """Hex digest of everything training reads, so that a checkpoint is never continued on other data."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (histories.offsets, histories.places, histories.visits, histories.ratings, histories.days):
        digest.update(np.ascontiguousarray(array).tobytes())
    for array in (vocabulary.category_offsets, vocabulary.categories, vocabulary.regions, vocabulary.coordinates):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(str(vocabulary.n_rows).encode())
    return digest.hexdigest()


@dataclass
class TrainingState:
    """What changes while training, and how it is saved."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    record: Progressing
    identity: dict[str, Any]
    """Data fingerprint and config: must be equal on resumption."""

    def save(self, folder: Path, step: int) -> None:
        """Make ``step`` the checkpoint of ``folder``; killed at any moment, the folder holds the old or the new one.

        Raises:
            StoreError: DISK-FULL or STORE-UNWRITABLE; the old one stands.
        """
        try:
            self._save(folder, step)
        except (OSError, SafetensorError) as error:
            raise _unwritable(folder, error) from error

    def _save(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = TENSORS.format(step=step)
        aside = folder / f"{name}.aside"
        save_file(self._tensors(), aside)
        _publish(aside, folder / name)
        content = {
            "step": step,
            "tensors": name,
            "identity": self.identity,
            "losses": self.record.losses,
            "skipped_steps": self.record.skipped_steps,
            "rollbacks": self.record.rollbacks,
        }
        pointer = folder / f"{CHECKPOINT}.aside"
        pointer.write_text(json.dumps(content))
        _publish(pointer, folder / CHECKPOINT)
        for old in folder.glob(TENSORS.format(step="*") + "*"):
            if old.name != name:
                old.unlink()

    def resume(self, folder: Path) -> int:
        """Load the checkpoint of ``folder``, if it has one; the number of steps done, 0 without.

        Raises:
            StoreError: OTHER-CHECKPOINT when it belongs to other data or another config, BAD-CHECKPOINT when damaged.
        """
        if not (folder / CHECKPOINT).exists():
            return 0
        content = self._read(folder)
        if content["identity"] != self.identity:
            raise StoreError(
                "OTHER-CHECKPOINT",
                place=str(folder),
                value=_difference(content["identity"], self.identity),
                rule="a checkpoint continues with the data and config it was begun with",
                fix="delete the folder to train afresh, or restore data and config",
            )
        self.record.losses[:] = content["losses"]
        self.record.skipped_steps, self.record.rollbacks = content["skipped_steps"], content["rollbacks"]
        self._load(folder, content)
        return int(content["step"])

    def roll_back(self, folder: Path) -> None:
        """Weights and optimiser as in the last checkpoint, if there is one; the record goes on."""
        self.record.rollbacks += 1
        if (folder / CHECKPOINT).exists():
            self._load(folder, self._read(folder))

    def spread(self, group: Workers, step: int) -> int:
        """Give every process the weights, optimiser state and steps done of process 0; returns the steps done."""
        if group.world == 1:
            return step
        own = {name: value.detach().cpu().numpy() for name, value in self._tensors().items()}
        told = group.share({**own, "done": np.array(step)})
        self._put({name: torch.from_numpy(array) for name, array in told.items()})
        return int(told["done"])

    def _read(self, folder: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((folder / CHECKPOINT).read_text())
            if not isinstance(content["step"], int) or "/" in content["tensors"]:
                raise ValueError("step or tensors")
            return content
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise _damaged(folder, error) from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model/{name}": value.detach().contiguous() for name, value in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.contiguous()
        return tensors

    def _load(self, folder: Path, content: dict[str, Any]) -> None:
        try:
            self._put(load_file(folder / content["tensors"]))
        except (KeyError, RuntimeError, OSError, SafetensorError) as error:
            raise _damaged(folder, error) from error

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            state = {key: tensors[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in tensors}
            if state:
                # AdamW counts its steps on the CPU, wherever the weights are.
                here = {key: x if key == "step" else x.to(parameter.device) for key, x in state.items()}
                self.optimizer.state[parameter] = here


def _publish(aside: Path, final: Path) -> None:
    """The bytes reach the disk before the name does, and the name before we go on."""
    fsync(aside)
    aside.replace(final)
    fsync(final.parent)


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "unreadable identity"
    return ", ".join(sorted(key for key in wanted if found.get(key) != wanted[key])) or "unknown keys"


def _unwritable(folder: Path, error: Exception) -> StoreError:
    # safetensors has no errno, only Rust's words for it.
    full = any(f"{word} {errno.ENOSPC}" in str(error) for word in ("[Errno", "os error"))
    return StoreError(
        "DISK-FULL" if full else "STORE-UNWRITABLE",
        place=str(folder),
        value=str(error),
        rule="there is room for checkpoints" if full else "checkpoints can be written",
        fix="free some space and run the same command again" if full else "check the path and its permissions",
    )


def _damaged(folder: Path, error: Exception) -> StoreError:
    return StoreError(
        "BAD-CHECKPOINT",
        place=str(folder),
        value=f"{type(error).__name__}: {error}",
        rule="a checkpoint written by this version",
        fix="delete the folder to train afresh",
    )
