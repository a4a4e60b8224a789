"""Files of packs and bundles changed by somebody who also updates the hashes, each opened and asked in a process.

``python -m tests.serving.hostile_files pack|bundle STORE SEED TIMES`` changes every file ``TIMES`` times and prints a
line for each: what was done to which file, and what came of it: ``refused CODE``, ``answered``, ``error CLASS`` (an
exception that is none of ours, while answering), ``signal N`` or ``hung``.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from tastetwin.client.schemas import Wanted
from tastetwin.config import BackendConfig
from tastetwin.delivery.pack import MANIFEST, pack_folder, read_pack
from tastetwin.errors import TasteTwinError
from tastetwin.runs import published_run
from tastetwin.serving.backend.model import open_model
from tastetwin.serving.gateway.answers import comparison, twin_rows
from tastetwin.serving.gateway.pack import Pack
from tastetwin.serving.gateway.people import People
from tastetwin.serving.gateway.search import Asker, closest, listed
from tastetwin.store import Store

SECONDS: Final = 20
MEMORY: Final = 4 << 30
"""Bytes of data that a process may have: a model that wants more is refused by the machine, not by us."""
Change = Callable[[bytearray, random.Random], None]


def _flip(data: bytearray, drawn: random.Random, n: int = 1, within: int | None = None) -> None:
    for _ in range(n if data else 0):
        data[drawn.randrange(min(len(data), within or len(data)))] ^= 1 << drawn.randrange(8)


def _word(data: bytearray, drawn: random.Random, within: int | None = None) -> None:
    """A number somewhere becomes one that hurts."""
    size = drawn.choice((4, 8))
    last = min(len(data), within or len(data)) - size
    if last > 0:
        at = drawn.randrange(last) // 4 * 4
        value = drawn.choice((-1, -2, 1, 1 << 30, (1 << 31) - 1, (1 << 62) + 1, (1 << 63) - 1, 0, len(data) * 2))
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _words(data: bytearray, drawn: random.Random) -> None:
    for _ in range(20):
        _word(data, drawn)


def _swap(data: bytearray, drawn: random.Random) -> None:
    half = len(data) // 2
    data[:] = data[half:] + data[:half]


def _cut(data: bytearray, drawn: random.Random) -> None:
    del data[drawn.choice((0, len(data) // 2, max(len(data) - 1, 0), drawn.randrange(len(data) + 1))) :]


CHANGES: Final[dict[str, Change]] = {
    "flip": _flip,
    "flip 50": lambda data, drawn: _flip(data, drawn, 50),
    "flip head": lambda data, drawn: _flip(data, drawn, 2, 200),
    "word": _word,
    "word of head": lambda data, drawn: _word(data, drawn, 400),
    "words": _words,
    "swap": _swap,
    "cut": _cut,
    "longer": lambda data, drawn: data.extend(drawn.randbytes(drawn.choice((1, 8, 4_096)))),
}


def ask_pack(store: Store) -> None:
    """Open the published pack and ask everything that it answers."""
    pack = Pack.of(store, published_run(store))
    people = People(pack)
    pack.people.positions([f"u{at}" for at in range(300)])
    pack.places.of([f"p{at}" for at in range(300)])
    pack.positions_of_names(frozenset({"00" * 16, "ff" * 16}))
    for position in range(0, len(pack), 37):
        vector, wanted = people.vector(position), Wanted(k=10)
        people.name(position)
        pack.favors([position])
        for found in (listed(people, position, people.excluded(position), 10), pack.stored_list(position)):
            if found is not None:
                twin_rows(people, found, people.rows(position), wanted, True)
        if vector is not None:
            near = closest(people, Asker(vector, people.home(position), people.own(position)), 20)
            twin_rows(people, near, people.rows(position), wanted, True)
        comparison(people, position, (position + 1) % len(pack), "ko", True)


def ask_bundle(store: Store) -> None:
    """Load the published bundle and compute some vectors."""
    model = open_model(store, published_run(store).generation("train"), BackendConfig())
    inputs: dict[str, Any] = {"places": np.array([[5, 6, 7], [8, 0, 0]])}
    inputs |= {name: np.ones((2, 3), np.float32) for name in ("visits", "ratings", "ages")}
    rows = model.check(inputs, BackendConfig())
    model.vectors([(rows, 0), (rows, 1)])


def manifest_of(kind: str, store: Store) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """Where the manifest is, its entries of files (to be changed in place), and all of it."""
    run = published_run(store)
    if kind == "pack":
        path = Path(store.path(f"{pack_folder(run.run_id)}/{MANIFEST}"))
        known = orjson.loads(path.read_bytes())
        assert read_pack(store, run.run_id) is not None
        return path, known["files"], known
    path = Path(store.path(f"bundles/{run.generation('train')}/manifest.json"))
    known = orjson.loads(path.read_bytes())
    return path, known["tables"]["model"], known


def outcome(ask: Callable[[Store], None], store: Store) -> str:
    """What came of asking, in a process of its own."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.close(ours)
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        try:
            ask(store)
            said = "answered"
        except TasteTwinError as error:
            said = f"refused {error.problem.code}"
        except BaseException as error:
            said = f"error {type(error).__name__}: {str(error)[:80]}"
        os.write(theirs, said.replace("\n", " ").encode())
        os._exit(0)
    os.close(theirs)
    select.select([ours], [], [], SECONDS + 5)
    said = os.read(ours, 1_000).decode()
    os.close(ours)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else f"signal {os.WTERMSIG(status)}"
    return said


def main(kind: str, folder: str, seed: str, times: str) -> None:
    """One line a change."""
    store = Store.open(folder)
    ask = ask_pack if kind == "pack" else ask_bundle
    ask(store)  # what is loaded once is loaded before the forks
    manifest, entries, known = manifest_of(kind, store)
    sound, drawn = manifest.read_bytes(), random.Random(int(seed))
    for entry in entries:
        path, before = Path(store.path(entry["path"])), dict(entry)
        whole = path.read_bytes()
        for name in drawn.choices(list(CHANGES), k=int(times)):
            data = bytearray(whole)
            CHANGES[name](data, drawn)
            path.unlink()  # whoever mapped the sound one goes on reading it
            path.write_bytes(data)
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest.write_bytes(orjson.dumps(known))
            print(f"{entry['path'].partition('/')[2].partition('/')[2]}\t{name}\t{outcome(ask, store)}", flush=True)
        path.write_bytes(whole)
        entry |= before
        manifest.write_bytes(sound)


if __name__ == "__main__":
    main(*sys.argv[1:])
