"""Whether the files of a pack belong together: after that, nothing that is looked up leads out of them.

Their hashes say that they are what was written. This is about who wrote them: numpy and our own code would raise an
error at the first question that meets a number out of place, but Arrow and faiss read on behind the end of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tastetwin.features.ids import NO_POSITION, check_offsets
from tastetwin.features.user_favor import USER_FAVOR

if TYPE_CHECKING:
    from tastetwin.serving.gateway.pack import Pack


def check(pack: Pack) -> None:
    """Compare all parts of an opened pack with each other.

    Raises:
        ValueError: parts that do not belong together.
        pyarrow.ArrowInvalid: favors that are damaged inside; it is a ValueError.
    """
    pack.people.check()
    n, dim, rows = len(pack.people), pack.dim, len(pack.vocabulary.place_ids)
    pack.places.check(rows)
    _is(pack.vectors, np.float32, (n, dim))
    _is(pack.axes, np.float32, (len(pack.axes), dim))
    _is(pack.crowding, np.float32, (n,))
    _is(pack.name_hashes, np.uint64, (n,))
    _within("homes", pack.homes, n, NO_POSITION, len(pack.vocabulary.region_codes))
    _within("instead", pack.instead, n, NO_POSITION, n)
    _within("members", pack.members, pack.index.size, 0, n)
    _within("bank", pack.bank_people, pack.bank.size, 0, n)
    pack.index.check(pack.index.size, dim)
    pack.bank.check(pack.bank.size, dim)
    for name, (offsets, values, *more), end in (
        ("history_places", pack.histories, rows),
        ("not_shown", pack.others, n),
        ("list_people", pack.lists, n),
    ):
        _is(offsets, np.int64, (n + 1,))
        check_offsets(offsets, len(values))
        _within(name, values, len(values), 0, end)
        for each in more:
            _is(each, np.float32, values.shape)
    _check_favors(pack, n)


def _is(array: npt.NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{array.dtype} {array.shape} in place of {dtype.__name__} {shape}")


def _within(name: str, array: npt.NDArray[Any], size: int, first: int, end: int) -> None:
    _is(array, np.int32, (size,))
    if size and (array.min() < first or array.max() >= end):
        raise ValueError(f"{name} from {array.min()} to {array.max()}, not from {first} to {end - 1}")


def _check_favors(pack: Pack, n: int) -> None:
    favored = pack.favored
    if favored.schema != USER_FAVOR or len(favored) != n:
        raise ValueError(f"favors of {len(favored)} people in place of {n}")
    favored.validate(full=True)
