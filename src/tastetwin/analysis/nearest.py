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
from tastetwin.analysis.index import ExactIndex, Floats, Ints, Shown, with_component
from tastetwin.config import AnalyzeConfig

FLAT_BELOW: Final = 4_000
"""Up to this many shown users all are looked at."""
_LANES: Final = 16
"""faiss reads half floats so many at a time where the length allows it, and else one by one: 7 times slower."""
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
    wide = with_component(vectors, component)
    return np.pad(wide, ((0, 0), (0, -wide.shape[1] % _LANES)))


class NearestIndex:
    """An opened index."""

    def __init__(self, path: Path, probes: int) -> None:
        """Map the file ``path`` of a ``Built`` into memory; its bytes were checked before."""
        faiss = load_faiss()
        self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        self._probes = probes
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

    def candidates(self, query: Floats, depth: int) -> Ints:
        """[<= depth] positions into the shown users, the likeliest first; all of them where ``depth`` asks for it.

        Args:
            query: [dim] unit vector.
            depth: how many.
        """
        return np.arange(self.size) if depth >= self.size else self.nearest(query, depth)[1]

    def nearest(self, query: Floats, depth: int) -> tuple[Floats, Ints]:
        """[<= depth] similarities less the bias, and positions, closest first; half floats where there are cells."""
        k = min(depth, self.size)
        if not k:  # faiss has no search for nothing
            return np.empty(0, np.float32), np.empty(0, np.int64)
        faiss = load_faiss()
        settings = faiss.SearchParametersIVF(nprobe=self._probes) if self._probes else None
        found, at = self._index.search(_wide(query[None], 1.0), k, params=settings)
        return found[0][at[0] >= 0], at[0][at[0] >= 0]


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
