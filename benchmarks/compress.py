"""What storing vectors as float16 or int8 saves and costs: bytes, twin MRR, top-100 overlap; and whether to search so.

    OMP_NUM_THREADS=1 python benchmarks/compress.py FOLDER [--date 2026-07-01]

Bytes are those of the Parquet files. MRR is that of the disjoint twin test (CSLS) with both halves stored and read;
overlap compares everybody's 100 nearest (CSLS) with those of float32. "int8, a scale a dimension" is the alternative
that was not chosen: it needs a pass over all users first. The search lines time faiss over compressed vectors (int8
scalar quantiser, float16) beside the exact search over float32, the same queries, on vectors repeated to 20,000.
Target: int8 loses less than .01 of MRR.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import get_args

import numpy as np
import pyarrow as pa

from parts import Floats, Ints, Learned, learn
from tastetwin.analysis.blas import load_faiss
from tastetwin.analysis.parts import unit
from tastetwin.analysis.stored import Form, as_matrix, packed, unpacked
from tastetwin.analysis.twins import find_twins
from tastetwin.config import AnalyzeConfig
from tastetwin.schema import USER
from tastetwin.store import Store
from tastetwin.tables import put_table

SEARCHED = 20_000
QUERIES = 2_000


def stored(vectors: Floats, form: Form) -> tuple[pa.Table, Floats]:
    """The rows of a file, and what is read from it."""
    rows = packed(pa.array(np.char.mod("%08d", np.arange(len(vectors)))), vectors, form)
    return rows, as_matrix(unpacked(rows))


def read_back(vectors: Floats, form: Form) -> Floats:
    """What readers get."""
    return stored(vectors, form)[1]


def size_of(vectors: Floats, form: Form) -> float:
    """Bytes a user in a Parquet file, the id aside."""
    rows = stored(vectors, form)[0]
    store = Store.create("memory://compress")
    return float(put_table(store, f"{form}.parquet", rows.drop_columns([USER])).bytes / rows.num_rows)


def by_dimension(vectors: Floats) -> Floats:
    """int8 with one scale a dimension, read again."""
    scales = np.abs(vectors).max(axis=0) / 127
    return unit(np.rint(vectors / scales) * scales)


def overlap(lists: Ints, truth: Ints) -> float:
    """The share of the true lists that is found."""
    return float(np.mean([np.isin(mine, found[found >= 0]).mean() for mine, found in zip(truth, lists, strict=True)]))


def nearest(vectors: Floats) -> Ints:
    """Everybody's list, by the exact search."""
    return find_twins(vectors, AnalyzeConfig(exact_below=10**9)).neighbours.astype(np.int64)


def show_forms(learned: Learned) -> None:
    """One line a form."""
    truth = nearest(learned.vectors)
    forms: tuple[Form, ...] = get_args(Form)
    read: dict[str, Callable[[Floats], Floats]] = {form: partial(read_back, form=form) for form in forms}
    read["int8, a scale a dimension"] = by_dimension
    size: dict[str, str] = {form: f"{size_of(learned.vectors, form):.0f} bytes a user, " for form in forms}
    for name, change in read.items():
        disjoint, matched = learned.mrr(change)
        found = overlap(nearest(change(learned.vectors)), truth)
        said = f"MRR {disjoint:.4f}, matched {matched:.4f}, top-100 overlap {found:.4f}"
        print(f"{name:25} {size.get(name, '')}{said}")


def show_searches(learned: Learned) -> None:
    """CPU seconds a thousand queries, and recall@100 of the exact search over float32."""
    faiss = load_faiss()
    dim = learned.vectors.shape[1]
    noise = np.random.default_rng(1).standard_normal((SEARCHED, dim), dtype=np.float32) / np.float32(dim)
    vectors = unit(np.resize(learned.vectors, (SEARCHED, dim)) + noise)
    queries = vectors[:QUERIES]
    inner, kinds = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
    indexes = {
        "float32, matrix products": faiss.IndexFlatIP(dim),
        "float16, faiss": faiss.IndexScalarQuantizer(dim, kinds.QT_fp16, inner),
        "int8, faiss": faiss.IndexScalarQuantizer(dim, kinds.QT_8bit, inner),
    }
    truth = None
    for name, index in indexes.items():
        index.train(vectors)
        index.add(vectors)
        start = time.process_time()
        found = index.search(queries, 100)[1]
        seconds = time.process_time() - start
        truth = found if truth is None else truth
        print(
            f"search {name:25} {1000 * seconds / QUERIES:.2f} core-s/1000 queries, recall {overlap(found, truth):.4f}"
        )


def main() -> None:
    """Both tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--date", type=date.fromisoformat, default=date.today(), help="later times are not believed")
    arguments = parser.parse_args()
    learned = learn(arguments.folder, arguments.date)
    print(f"{learned.dataset.name}: {len(learned.vectors)} users")
    show_forms(learned)
    show_searches(learned)


if __name__ == "__main__":
    main()
