"""A little store in which some people are everywhere, and a search through every byte of a store."""

from __future__ import annotations

import gzip
import html
import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tastetwin.analysis.standing import EXPOSURE
from tastetwin.delivery.diff import ChangedList, Exposure, diff_runs, write_diff
from tastetwin.evaluation.reports import report_path
from tastetwin.features.stage import NOT_SHOWN
from tastetwin.generations import FOLDERS, STAGES, Manifest, entry_of, finish, is_finished, read_manifest, verify
from tastetwin.mart.merge import LAYOUTS
from tastetwin.privacy.opt_out import OptOuts, name_of
from tastetwin.runs import list_runs, publish, write_run
from tastetwin.schema import QUARANTINE, RESULT, TWINS
from tastetwin.store import Store
from tastetwin.tables import put_table
from tests import handmade

ODD = 'kanarie "☂", \\7'
"""An id with quotes, a comma, a backslash, blanks and Unicode."""


def line(user: str, place: str = "a", **more: Any) -> bytes:
    """A raw review."""
    return json.dumps({"user_idno": user, "review_place_id": place, **more}).encode() + b"\n"


def renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    """The same table about other users."""

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: other(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [other(inner) for inner in value]
        return names.get(value, value) if isinstance(value, str) else value

    return pa.Table.from_pylist([other(row) for row in table.to_pylist()], table.schema)


def results_of(twins: pa.Table) -> pa.Table:
    """``RESULT`` of twin lists."""
    lists: dict[str, list[dict[str, Any]]] = {}
    for row in twins.to_pylist():
        lists.setdefault(row["user_idno"], []).append({name: row[name] for name in TWINS.names[2:]})
    rows = [{"idno": user, "payload": {"logical_date": "d", "twins": found}} for user, found in lists.items()]
    return pa.Table.from_pylist(rows, RESULT)


def haunt(store: Store, names: dict[str, str]) -> None:
    """Publish ``handmade``'s users under other names, each in every kind of file that a store has."""
    users = [names.get(user, user) for user in handmade.USERS]
    raw = b"".join(line(user) for user in users) + b"".join(b"not json, " + line(user)[:-1] + b"\n" for user in users)
    raw += b"".join(line("bystander", friends=["x", user], text=f"so says {user}!") for user in users)
    files = {"reviews.jsonl": raw, "reviews.jsonl.gz": gzip.compress(raw), "reviews.jsonl.zst": _zstd(raw)}
    for name, data in files.items():
        store.write_bytes(f"lake/c/reviews/{name}", data)
    lake = [entry_of(store, f"lake/c/reviews/{name}") for name in files]
    finish(store, Manifest("collect", "c", handmade.DAY, {}, {}, {"reviews": lake}, {}))
    reviews = pa.Table.from_pylist(
        [{"user_idno": user, "review_place_id": "a", "landed_date": handmade.DAY} for user in users],
        LAYOUTS["reviews"].schema,
    )
    refused = [("reviews", "f", 0, 3, "syntax", "00", f"no json, {user}, 3") for user in users]
    quarantine = pa.Table.from_pylist([dict(zip(QUARANTINE.names, row, strict=True)) for row in refused], QUARANTINE)
    pairs = [{"user_idno": user, "other_idno": "bystander"} for user in users]
    pairs += [{"user_idno": "bystander", "other_idno": user} for user in users]
    follows = pa.Table.from_pylist([{**pair, "landed_date": handmade.DAY} for pair in pairs], LAYOUTS["follows"].schema)
    tables = {"reviews/1": [reviews], "follows/1": [follows], "blocks/1": [follows], "quarantine": [quarantine]}
    first = handmade.generation(store, "mart", "m", tables)
    handmade.generation(store, "mart", "m2", keeps={"reviews/1": first.tables["reviews/1"]})
    not_shown = pa.Table.from_pylist(pairs, NOT_SHOWN)
    tables = {"user_favor": [renamed(handmade.user_favor(), names)], "not_shown": [not_shown]}
    handmade.features(store, tables=tables)
    handmade.generation(store, "train", "t")
    handmade.analysis(store)
    _rename(store, read_manifest(store, "features", "f"), ["history"], names)
    _rename(store, read_manifest(store, "analyze", "a"), ["twins", "vectors"], names)
    exposed = [(user, 1, None, None, 0.1, 0.5, None) for user in users] + [
        ("bystander", 0, "same_person", user, 0.1, 0.5, None) for user in users
    ]
    exposure = pa.Table.from_pylist([dict(zip(EXPOSURE.names, row, strict=True)) for row in exposed], EXPOSURE)
    analysis = read_manifest(store, "analyze", "a")
    written = [put_table(store, "analysis/a/exposure.parquet", exposure)]
    finish(store, replace(analysis, tables={**analysis.tables, "exposure": written}))
    handmade.generation(store, "evaluate", "e")
    results = {"result": [results_of(renamed(handmade.twins(), names))]}
    handmade.generation(store, "deliver", "d", results, facts={"buckets": 1})
    run = handmade.run_of(store, dict(zip(STAGES, "cmftaed", strict=True)))
    page = "".join(
        f'<details class="x" data-user="{name_of(user)}">{html.escape(user)}</details>\n'
        f'<tr data-user="{name_of(user)}"><td>{html.escape(user)}</td></tr>\n'
        for user in users
    )
    store.write_bytes(report_path(run.run_id), f"<!DOCTYPE html>\n{page}".encode())
    publish(store, run.run_id)
    changed = [ChangedList(user, 10, [*users, "bystander"], users) for user in users]
    seen = [Exposure(user, 1, 2) for user in users]
    kept = diff_runs(store, run, run, OptOuts())
    write_diff(store, replace(kept, most_changed=changed, gained=seen, lost=seen))
    for user in users:
        failed = handmade.run_of(store, {"collect": "c"}, status="failed")
        write_run(store, replace(failed, error=f"BAD-VECTOR: the first {user!r} with length nan", findings=[user]))
    # What killed processes left.
    everybody = "\n".join(users).encode()
    for path in ("lake/killed/reviews/r.jsonl", "mart/killed/staging/q.parquet", "checkpoints/t2/checkpoint.json"):
        store.write_bytes(path, everybody)
    for path in ("reports/.x.html.7.tmp", "runs/.x.json.7.tmp", ".published.json.7.tmp"):
        store.write_bytes(path, everybody)


def _rename(store: Store, manifest: Manifest, tables: list[str], names: dict[str, str]) -> None:
    changed = {
        table: [
            put_table(store, each.path, renamed(pq.read_table(store.path(each.path), filesystem=store.arrow), names))
            for each in manifest.tables[table]
        ]
        for table in tables
    }
    finish(store, replace(manifest, tables=manifest.tables | changed))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def contents(store: Store) -> dict[str, str]:
    """File -> all that can be read in it, as text: its bytes, unpacked, and the rows of tables."""
    return {path: _readable(store, path) for path in store.files("")}


def _readable(store: Store, path: str) -> str:
    with store.open_read(path) as handle:
        raw = handle.read()
    texts = [raw]
    if path.endswith(".gz"):
        texts.append(gzip.decompress(raw))
    if path.endswith(".zst"):
        with zstandard.ZstdDecompressor().stream_reader(raw) as plain:
            texts.append(plain.read())
    said = "\n".join(text.decode(errors="replace") for text in texts)
    if raw[:4] == b"PAR1":
        said += "\n" + "\n".join(map(str, _strings(pq.read_table(pa.BufferReader(raw)).to_pylist())))
    return said


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _strings(inner)]
    return [value] if isinstance(value, str) else []


def naming(user: str, said: dict[str, str]) -> list[str]:
    """Files in which the id stands, as it is or escaped in any way that our files escape."""
    forms = {
        user,
        json.dumps(user)[1:-1],
        json.dumps(user, ensure_ascii=False)[1:-1],
        html.escape(user),
        repr(user)[1:-1],
    }
    forms |= {html.escape(user).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")}
    forms |= {json.dumps(form, ensure_ascii=False)[1:-1] for form in forms}
    return sorted(path for path, text in said.items() if any(form in text for form in forms))


def check_manifests(store: Store) -> int:
    """Every finished generation's files are what its manifest says; how many there are."""
    finished = [
        read_manifest(store, stage, name)
        for stage in STAGES
        for name in store.names(FOLDERS[stage])
        if is_finished(store, stage, name)
    ]
    for manifest in finished:
        verify(store, manifest)
    assert list_runs(store)
    return len(finished)


def rows_of_all(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Generation and table -> its rows, in the order of its files; the lake's lines that are not blank."""
    found: dict[str, list[Any]] = {}
    for stage in STAGES:
        for name in store.names(FOLDERS[stage]):
            if not is_finished(store, stage, name):
                continue
            for table, entries in read_manifest(store, stage, name).tables.items():
                for entry in entries:
                    rows = _lines(store, entry.path) if stage == "collect" else _rows(store, entry.path)
                    found.setdefault(f"{stage} {name} {table}", []).extend(rows)
    return found


def _rows(store: Store, path: str) -> list[Any]:
    if not path.endswith(".parquet"):
        return [store.sha256(path)]
    rows: list[Any] = pq.read_table(store.path(path), filesystem=store.arrow).to_pylist()
    return rows


def _lines(store: Store, path: str) -> list[Any]:
    text = _readable(store, path).split("\n")
    return [each.rstrip() for each in text if each.strip() and "\ufffd" not in each]
