"""``analyze`` end to end: what the lists of a whole town say of their parts, and what its settings change."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tastetwin.analysis.parts import read_axes, reweighted
from tastetwin.analysis.stage import analyze_users, list_vectors
from tastetwin.analysis.stored import read_vectors
from tastetwin.config import AnalyzeConfig
from tastetwin.engine import Engine
from tastetwin.evaluation.stage import evaluate_run
from tastetwin.generations import Manifest, read_manifest
from tastetwin.runs import StageRecord
from tastetwin.schema import TWINS, USER
from tastetwin.tables import read_table
from tests.world import QUICK, Journey

pytestmark = pytest.mark.slow


def analyzed(journey: Journey, engine: Engine, **settings: object) -> Manifest:
    """The town analyzed by other settings; the first run stays as it is."""
    made = {
        stage: read_manifest(journey.store, stage, journey.first.generation(stage)) for stage in ("features", "train")
    }
    config = QUICK.model_copy(update={"analyze": AnalyzeConfig(**settings)})
    return analyze_users(engine, journey.store, made["features"], made["train"], config)


def home_share(rows: pa.Table) -> float:
    """Of the similarities of a run's twins."""
    taste, home = (rows.column(name).to_numpy() for name in ("taste", "home"))
    return float(home.sum() / (taste + home).sum())


def test_the_parts_of_a_twin_sum_to_the_dot_product_of_the_vectors(journey: Journey) -> None:
    """Row by row, of the vectors that the run itself keeps."""
    analysis = read_manifest(journey.store, "analyze", journey.first.generation("analyze"))
    ids, vectors = read_vectors(journey.store, analysis.paths("vectors"))
    rows = read_table(journey.store, analysis, "twins", TWINS)
    user, twin = (np.searchsorted(ids, rows.column(name).to_pylist()) for name in (USER, "twin_idno"))
    whole = (vectors[user] * vectors[twin]).sum(axis=1)
    assert np.abs(rows.column("taste").to_numpy() + rows.column("home").to_numpy() - whole).max() < 1e-5
    along = vectors @ read_axes(journey.store, analysis, vectors.shape[1]).T
    assert along.shape[1] == analysis.facts["parts"]["axes"] > 0, "the town has regions"
    assert np.abs((along[user] * along[twin]).sum(axis=1) - rows.column("home").to_numpy()).max() < 1e-5


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_compressed_vectors_are_files_of_less_and_the_same_users(journey: Journey, engine: Engine, form: str) -> None:
    """And lists made of what was stored: whoever reads the vectors finds the lists to be theirs."""
    plain = read_manifest(journey.store, "analyze", journey.first.generation("analyze"))
    small = analyzed(journey, engine, vectors=form)
    sizes = [sum(entry.bytes for entry in made.tables["vectors"]) for made in (plain, small)]
    assert sizes[1] < 0.6 * sizes[0]
    (ids, vectors), (same, found) = (read_vectors(journey.store, made.paths("vectors")) for made in (plain, small))
    assert ids.tolist() == same.tolist() and (vectors * found).sum(axis=1).min() > 0.999
    assert np.array_equal(list_vectors(journey.store, small, found), found)


def test_lists_of_taste_alone_hold_less_home_and_pass_the_gate(journey: Journey, engine: Engine) -> None:
    """They are not the nearest by the vectors as trained, and the gate must know by which they are."""
    plain = read_manifest(journey.store, "analyze", journey.first.generation("analyze"))
    anywhere = analyzed(journey, engine, home_weight=0.0)
    shares = [home_share(read_table(journey.store, made, "twins", TWINS)) for made in (plain, anywhere)]
    assert shares[1] < 0.7 * shares[0]
    _, vectors = read_vectors(journey.store, anywhere.paths("vectors"))
    axes = read_axes(journey.store, anywhere, vectors.shape[1])
    assert np.array_equal(list_vectors(journey.store, anywhere, vectors), reweighted(vectors, axes, 0.0))
    stages = {**journey.first.stages, "analyze": StageRecord(anywhere.generation, 1.0)}
    del stages["evaluate"], stages["deliver"]
    run = type(journey.first)("other", journey.first.logical_date, "open", journey.first.started_at, stages)
    verdict = evaluate_run(journey.store, run, QUICK).facts["verdict"]
    assert "LISTS-NOT-NEAREST" not in [finding["code"] for finding in verdict["findings"]]
