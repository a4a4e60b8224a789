"""Checkpoints of a training in progress, in a store of their own: tensors in safetensors, the rest in JSON.

A resumed training continues, on a CPU bit for bit: randomness is drawn from (seed, step), so weights, optimiser state
and the number of steps done are all there is to keep.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tastetwin.errors import StoreError
from tastetwin.features.histories import Histories, Vocabulary
from tastetwin.model.files import CHECKPOINT
from tastetwin.model.workers import Workers
from tastetwin.store import Store, is_aside

TENSORS: Final = "checkpoint-{step}.safetensors"
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


class Progressing(Protocol):
    """A record of training that a checkpoint carries along."""

    losses: list[float]
    skipped_steps: int
    rollbacks: int
    ran_on: list[dict[str, Any]]


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
    """Data fingerprint, config and digest of the source code: must be equal on resumption."""

    def save(self, store: Store, step: int) -> None:
        """Make ``step`` the checkpoint in ``store``; killed at any moment, it holds the old or the new one.

        Raises:
            StoreError: DISK-FULL or STORE-UNWRITABLE; the old one stands.
        """
        name = TENSORS.format(step=step)
        store.write_bytes(name, save(self._tensors()))
        content = {
            "step": step,
            "tensors": name,
            "identity": self.identity,
            "losses": self.record.losses,
            "skipped_steps": self.record.skipped_steps,
            "rollbacks": self.record.rollbacks,
            "ran_on": self.record.ran_on,
        }
        store.write_json(CHECKPOINT, content)
        for old in store.names(""):
            if (old.startswith("checkpoint-") and old != name) or is_aside(old):
                store.remove(old)

    def resume(self, store: Store) -> int:
        """Load the checkpoint in ``store``, if it has one; the number of steps done, 0 without.

        Raises:
            StoreError: OTHER-CHECKPOINT when it belongs to other data, another config or other code; BAD-CHECKPOINT
                when damaged; STORE-UNREADABLE.
        """
        if (content := require_own(store, self.identity)) is None:
            return 0
        self.record.losses[:], self.record.ran_on[:] = content["losses"], content["ran_on"]
        self.record.skipped_steps, self.record.rollbacks = content["skipped_steps"], content["rollbacks"]
        self._load(store, content)
        return int(content["step"])

    def roll_back(self, store: Store) -> None:
        """Weights and optimiser as in the last checkpoint, if there is one; the record goes on."""
        self.record.rollbacks += 1
        if store.exists(CHECKPOINT):
            self._load(store, _read(store))

    def spread(self, group: Workers, step: int) -> int:
        """Give every process the weights, optimiser state and steps done of process 0; returns the steps done."""
        if group.world == 1:
            return step
        own = {name: value.detach().cpu().numpy() for name, value in self._tensors().items()}
        told = group.share({**own, "done": np.array(step)})
        self._put({name: torch.from_numpy(array) for name, array in told.items()})
        return int(told["done"])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model/{name}": value.detach().contiguous() for name, value in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.contiguous()
        return tensors

    def _load(self, store: Store, content: dict[str, Any]) -> None:
        try:
            self._put(load(store.read_bytes(content["tensors"])))
        except (KeyError, RuntimeError, FileNotFoundError, SafetensorError) as error:
            raise _damaged(store, error) from error

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            state = {key: tensors[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in tensors}
            if state:
                # AdamW counts its steps on the CPU, wherever the weights are.
                here = {key: x if key == "step" else x.to(parameter.device) for key, x in state.items()}
                self.optimizer.state[parameter] = here


def require_own(store: Store, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The pointer to the checkpoint in ``store``, None without one. Raises as ``TrainingState.resume``."""
    if not store.exists(CHECKPOINT):
        return None
    content = _read(store)
    if content["identity"] != identity:
        raise StoreError(
            "OTHER-CHECKPOINT",
            place=store.url(""),
            value=_difference(content["identity"], identity),
            rule="a checkpoint continues with the data, config and code it was begun with",
            fix="delete the folder to train afresh, or restore data, config and code",
        )
    return content


def _read(store: Store) -> dict[str, Any]:
    try:
        content: dict[str, Any] = orjson.loads(store.read_bytes(CHECKPOINT))
        if not isinstance(content["step"], int) or "/" in content["tensors"]:
            raise ValueError("step or tensors")
        return content
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(store, error) from error


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "unreadable identity"
    return ", ".join(sorted(key for key in wanted if found.get(key) != wanted[key])) or "unknown keys"


def _damaged(store: Store, error: Exception) -> StoreError:
    return StoreError(
        "BAD-CHECKPOINT",
        place=store.url(""),
        value=f"{type(error).__name__}: {error}",
        rule="a checkpoint written by this version",
        fix="delete the folder to train afresh",
    )
