"""The nearest shown users of one vector: an inverted file (Sivic & Zisserman 2003), mapped into memory.

``cells`` answers everybody at once and needs everybody for it; here one query comes at a time, from a file that several
processes share. A search only proposes candidates: ``index.rank`` orders them by exact dot products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.analysis.blas import load_faiss
from tastetwin.analysis.cells import CellIndex, Cells
from tastetwin.analysis.index import ExactIndex, Floats, Ints, Shown
from tastetwin.config import AnalyzeConfig

FLAT_BELOW: Final = 4_000
"""Up to this many shown users all are looked at."""
_LANES: Final = 16
"""faiss reads half floats so many at a time where the length allows it, and else one by one: 7 times slower."""
_TOGETHER: Final = 16
"""Queries that faiss is given at once: from 20 on it multiplies matrices, which sums in an order that depends on how
many there are."""
_QUERIES: Final = 500
"""Of the sample that the number of cells looked into is chosen by."""


@dataclass(frozen=True)
class Built:
    """An index to be kept."""

    data: npt.NDArray[np.uint8]
    """Bytes of the file."""
    probes: int
    """Cells to look into; 0 = there are none, all users are looked at."""
    recall: float
    """Share of the exact lists of a sample of users that is found so."""


def build(shown: Shown, k: int, config: AnalyzeConfig) -> Built:
    """The index of ``shown``, for lists of about ``k``; ``recall`` and ``seed`` of the configuration are used."""
    faiss = load_faiss()
    if shown.size <= FLAT_BELOW:
        wide = _wide(shown.vectors, -shown.bias)
        flat = faiss.IndexFlatIP(wide.shape[1])
        flat.add(wide)
        return Built(faiss.serialize_index(flat), 0, 1.0)
    everybody = np.arange(shown.size)
    cells = CellIndex(shown, Cells.fit(shown.vectors, everybody, config.seed), everybody)
    drawn = np.sort(np.random.default_rng(config.seed).permutation(everybody)[:_QUERIES])
    queries = np.ascontiguousarray(shown.vectors[drawn])
    _, truth = ExactIndex(shown).top_k(queries, shown.labels[drawn], min(k, shown.size))
    probes, recall = cells.probes_needed(queries, truth, config.recall)
    return Built(faiss.serialize_index(_inverted(shown, cells)), probes, recall)


def _inverted(shown: Shown, cells: CellIndex) -> Any:
    """Half floats, since candidates are ranked anew; every user in the cell that ``cells`` put them in."""
    faiss = load_faiss()
    wide = _wide(shown.vectors, -shown.bias)
    quantizer = faiss.IndexFlatIP(wide.shape[1])
    quantizer.add(_wide(cells.centres[:, :-1], cells.centres[:, -1]))
    kind = faiss.ScalarQuantizer.QT_fp16
    made = faiss.IndexIVFScalarQuantizer(
        quantizer, wide.shape[1], cells.cells.size, kind, faiss.METRIC_INNER_PRODUCT, False
    )
    made.is_trained = True  # half floats have nothing to learn
    positions, homes = np.arange(shown.size), np.ascontiguousarray(cells.home)
    made.add_core(shown.size, *(faiss.swig_ptr(each) for each in (wide, positions, homes)))
    return made


def _wide(vectors: Floats, component: Floats | float) -> Floats:
    """The vectors with one more component, and zeros up to a multiple of ``_LANES``."""
    n, dim = vectors.shape
    wide = np.zeros((n, dim + 1 + -(dim + 1) % _LANES), np.float32)
    wide[:, :dim], wide[:, dim] = vectors, component
    return wide


class NearestIndex:
    """An opened index."""

    def __init__(self, path: Path, probes: int) -> None:
        """Map the file ``path`` of a ``Built`` into memory; its bytes were checked before."""
        faiss = load_faiss()
        self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        self._probes = probes
        self._settings = faiss.SearchParametersIVF(nprobe=probes) if probes else None
        self._pointer = faiss.swig_ptr
        self.size = int(self._index.ntotal)

    def check(self, size: int, dim: int) -> None:
        """See that the index is of so many users and dimensions and that its parts are as large as they say.

        faiss reads what the file says without a look: a hostile file could lead a search out of it.

        Raises:
            ValueError: it is not.
        """
        faiss = load_faiss()
        index = faiss.downcast_index(self._index)
        width = dim + 1 + -(dim + 1) % _LANES
        if (self.size, index.d, index.metric_type) != (size, width, faiss.METRIC_INNER_PRODUCT):
            raise ValueError(f"an index of {self.size} users and {index.d} numbers each, not {size} and {width}")
        if isinstance(index, faiss.IndexFlatIP):
            _check_flat(index, width)
        elif isinstance(index, faiss.IndexIVFScalarQuantizer):
            _check_inverted(index, width)
        else:
            raise ValueError(f"an index that is a {type(index).__name__}")
        if bool(self._probes) != isinstance(index, faiss.IndexIVFScalarQuantizer):
            raise ValueError(f"{self._probes} cells to look into")

    def candidates(self, queries: Floats, depth: int) -> Ints:
        """[n, depth] positions of shown users, the likeliest first, -1 where there are no more; or all of them."""
        if depth >= self.size:
            return np.broadcast_to(np.arange(self.size), (len(queries), self.size))
        return self.nearest(queries, depth)[1]

    def nearest(self, queries: Floats, depth: int) -> tuple[Floats, Ints]:
        """[n, depth] similarities less the bias, and positions, closest first; half floats where there are cells.

        Where there are no more, the position is -1. What is found for a query does not depend on the others.
        """
        depth = min(depth, self.size)
        found, at = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64)
        if not depth:  # faiss has no search for nothing
            return found, at
        for start in range(0, len(queries), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            self._search(_wide(queries[part], 1.0), found[part], at[part])
        return found, at

    def _search(self, wide: Floats, found: Floats, at: Ints) -> None:
        """Not by faiss's own method, whose checks of its arguments take as long as the search of one query."""
        queries, similarities, positions = map(self._pointer, (wide, found, at))
        self._index.search_c(len(wide), queries, found.shape[1], similarities, positions, self._settings)


def _check_flat(index: Any, width: int) -> None:
    if (index.code_size, index.codes.size()) != (4 * width, 4 * width * index.ntotal):
        raise ValueError(f"{index.codes.size()} bytes of {index.ntotal} users")


def _check_inverted(index: Any, width: int) -> None:
    """Every number once, whichever cell it is in."""
    faiss = load_faiss()
    quantizer, lists, coder = faiss.downcast_index(index.quantizer), index.invlists, index.sq
    if not isinstance(quantizer, faiss.IndexFlatIP) or (quantizer.ntotal, quantizer.d) != (index.nlist, width):
        raise ValueError("cells without their centres")
    _check_flat(quantizer, width)
    kinds = (coder.qtype, coder.d, coder.code_size, index.code_size, lists.code_size, index.by_residual)
    if kinds != (faiss.ScalarQuantizer.QT_fp16, width, 2 * width, 2 * width, 2 * width, False):
        raise ValueError("users that are not half floats")
    sizes = [lists.list_size(cell) for cell in range(lists.nlist)]
    if lists.nlist != index.nlist or sum(sizes) != index.ntotal:
        raise ValueError(f"{sum(sizes)} users in {lists.nlist} cells")
    numbers = [faiss.rev_swig_ptr(lists.get_ids(cell), size) for cell, size in enumerate(sizes) if size]
    if not np.array_equal(np.sort(np.concatenate(numbers)), np.arange(index.ntotal)):
        raise ValueError("users that there are not")
