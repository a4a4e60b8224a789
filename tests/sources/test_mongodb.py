"""The MongoDB adapter against a wire-protocol peer in process, and against a real server where one is given."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import bson
import orjson
import pymongo
import pytest
import zstandard
from bson.raw_bson import RawBSONDocument

from tastetwin import generations
from tastetwin.config import CollectConfig
from tastetwin.errors import InputError, TasteTwinError
from tastetwin.masks import masked
from tastetwin.privacy.opt_out import deny, read_forgotten
from tastetwin.privacy.screen import Screen
from tastetwin.progress import silent
from tastetwin.sources.collect import collect
from tastetwin.sources.mongodb import Database, line
from tastetwin.store import Store
from tests.sources.mongo_peer import Document, Peer, serving

DAY = date(2026, 11, 22)


def review(number: int, **fields: Any) -> Document:
    return {"_id": bson.ObjectId(f"{number:024x}"), "review_id": f"r{number}", "user_idno": "u", **fields}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer({"reviews": [review(n) for n in range(25)], "places": [], "drafts": [review(1)]})) as found:
        yield found


def landed_lines(store: Store, manifest_paths: list[str]) -> list[bytes]:
    lines: list[bytes] = []
    for path in manifest_paths:
        with store.open_read(path) as raw, zstandard.ZstdDecompressor().stream_reader(raw) as plain:
            lines += io.BufferedReader(plain).readlines()
    return lines


def land(peer: Peer, store: Store) -> dict[str, list[generations.FileEntry]]:
    return Database(peer.uri, "other", part_documents=10, batch_documents=4).land(store, "lake/g", silent)


def test_every_document_becomes_one_line_in_parts_of_a_stated_size(peer: Peer, store: Store) -> None:
    """Parts bound what a crash costs; their order is that of _id, so that two landings have the same bytes."""
    tables = land(peer, store)
    assert [entry.path for entry in tables["reviews"]] == [
        f"lake/g/reviews/reviews-0000{number}.jsonl.zst" for number in range(3)
    ]
    found = [orjson.loads(text) for text in landed_lines(store, [entry.path for entry in tables["reviews"]])]
    assert [each["review_id"] for each in found] == [f"r{number}" for number in range(25)]
    assert tables["places"] == []


def test_collect_keeps_a_finished_day_and_reads_it_again_only_when_asked(peer: Peer, store: Store) -> None:
    """A day that was landed stays as it was, whatever the live collections do meanwhile."""
    first = collect(store, peer.uri, DAY, config=CollectConfig())
    peer.collections["reviews"].append(review(99))
    assert collect(store, peer.uri, DAY, config=CollectConfig()) == first
    second = collect(store, peer.uri, DAY, again=True, config=CollectConfig())
    assert len(landed_lines(store, first.paths("reviews"))) == 25
    assert len(landed_lines(store, second.paths("reviews"))) == 26
    assert first.facts["ignored"] == ["drafts"]
    generations.verify(store, second)


def test_a_connection_cut_in_mid_cursor_is_one_coded_error_and_the_next_attempt_goes_on(
    peer: Peer, store: Store
) -> None:
    """Finished parts are not read again, no document is lost or doubled, and the bytes equal an unbroken landing's."""
    peer.drop_at_get_more = 5
    with pytest.raises(InputError) as caught:
        land(peer, store)
    assert caught.value.problem.code == "MONGODB-BROKEN-OFF"
    assert store.names("lake/g/reviews") == ["reviews-00000.jsonl.zst", "reviews-00001.jsonl.zst"]

    resumed = land(peer, store)
    assert peer.finds()[-2]["min"] == {"_id": bson.ObjectId(f"{19:024x}")}
    whole = Store.create(store.root + "-2")
    assert land(peer, whole) == resumed


def test_documents_of_who_was_forgotten_are_in_no_part_and_an_attempt_goes_on_past_them(
    peer: Peer, store: Store
) -> None:
    """No part is empty and each one's last line names a document, however many in a row are theirs."""
    for at in range(8, 23):
        peer.collections["reviews"][at]["user_idno"] = "gone"
    deny(store, ["gone"])
    peer.drop_at_get_more = 5
    source, screen = Database(peer.uri, "other", part_documents=4, batch_documents=4), Screen(read_forgotten(store))
    with pytest.raises(InputError):
        source.land(store, "lake/g", silent, screen)
    paths = [entry.path for entry in source.land(store, "lake/g", silent, screen)["reviews"]]
    found = [[orjson.loads(text)["review_id"] for text in landed_lines(store, [path])] for path in paths]
    assert found == [["r0", "r1", "r2", "r3"], ["r4", "r5", "r6", "r7"], ["r23", "r24"]]


def test_an_attempt_goes_on_across_ids_of_different_types(store: Store) -> None:
    """A {_id: {$gt: ...}} filter compares within one type only: everything after the last number would be lost."""
    documents = [review(0) | {"_id": identity} for identity in (1, 2.5, 2**40, "a", "b", {"x": 1}, bson.ObjectId())]
    with serving(Peer({"reviews": documents})) as peer:
        for part in (3, 4, 7):
            target = Store.create(f"{store.root}-{part}")
            source = Database(peer.uri, "town", part_documents=part, batch_documents=2)
            paths = [entry.path for entry in source.land(target, "lake/g", silent)["reviews"]]
            for path in paths[1:]:
                target.remove(path)
            again = [entry.path for entry in source.land(target, "lake/g", silent)["reviews"]]
            assert again == paths
            assert len(landed_lines(target, again)) == len(documents)


def test_values_become_what_a_json_reader_expects() -> None:
    """Each BSON type, one by one: the gate must find times, ids and numbers where it looks for them."""
    found = orjson.loads(
        line(
            {
                "_id": bson.ObjectId("0" * 24),
                "time": datetime(2026, 11, 22, 1, 2, 3, 4000, tzinfo=UTC),
                "decimal": bson.Decimal128("4.50"),
                "long": bson.Int64(2**53 + 1),
                "nan": float("nan"),
                "object_id": bson.ObjectId("a" * 24),
                "nested": {"list": [bson.Int64(1), None, True, {"t": datetime(1970, 1, 1, tzinfo=UTC)}]},
                "binary": b"\x00\x01",
            }
        )
    )
    assert found == {
        "_id": {"$oid": "0" * 24},
        "time": "2026-11-22T01:02:03.004000Z",
        "decimal": "4.50",
        "long": 2**53 + 1,
        "nan": "nan",
        "object_id": "a" * 24,
        "nested": {"list": [1, None, True, {"t": "1970-01-01T00:00:00Z"}]},
        "binary": {"$binary": {"base64": "AAE=", "subType": "00"}},
    }


def test_one_broken_document_costs_no_other(store: Store) -> None:
    """Text that is not UTF-8 and a time in the year 300,000 leave for the gate; strict decoding would end the day."""
    broken = bson.encode({"_id": 1, "user_idno": "zz"}).replace(b"zz", b"\xff\xfe")
    far = bson.encode({"_id": 2, "t": bson.Int64(1)}).replace(
        b"\x12t\0" + struct.pack("<q", 1), b"\x09t\0" + struct.pack("<q", 2**53)
    )
    documents: list[Any] = [RawBSONDocument(broken), RawBSONDocument(far), {"_id": 3, "user_idno": "u"}]
    with serving(Peer({"likes": documents})) as peer:
        (entry,) = land(peer, store)["likes"]
    first, second, third = landed_lines(store, [entry.path])
    assert first == b'{"_id": 1, "user_idno": "\xff\xfe"}\n'
    assert orjson.loads(second) == {"_id": 2, "t": {"$date": {"$numberLong": str(2**53)}}}
    assert orjson.loads(third) == {"_id": 3, "user_idno": "u"}


SECRETS = ("pa55", "w0rd", "someone", "t0ken")


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://someone:pa55w0rd@127.0.0.1:{port}/town?authSource=t0ken",
        "mongodb://someone:pa55@w0rd@127.0.0.1:{port}/town",
        "mongodb://someone:pa55/w0rd@127.0.0.1:{port}/town",
        "mongodb://someone:pa55?w0rd@127.0.0.1:{port}/town",
        "mongodb://someone:pa55:w0rd@127.0.0.1:{port}/town",
        "mongodb://someone:pa55w0rd@127.0.0.1:1/town?serverSelectionTimeoutMS=50",
        "mongodb://127.0.0.1:{port}/town?authMechanism=t0ken",
        "mongodb://127.0.0.1:{port}/town?authMechanismProperties=AWS_SESSION_TOKEN:t0ken@t0ken",
    ],
)
def test_no_error_tells_a_secret_of_the_address(
    peer: Peer, store: Store, uri: str, recwarn: pytest.WarningsRecorder
) -> None:
    """The driver's own messages quote pieces of an address it cannot parse, password and all."""
    peer.refuse = (18, "AuthenticationFailed")
    with pytest.raises(TasteTwinError) as caught:
        collect(store, uri.format(port=peer.uri.split(":")[2].split("/")[0]), DAY, config=CollectConfig())
    told, error = "".join(str(each.message) for each in recwarn), caught.value
    seen: BaseException | None = error
    while seen is not None:
        told += str(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    assert not [secret for secret in SECRETS if secret in told]
    assert error.problem.code in ("MONGODB-REFUSED", "MONGODB-ADDRESS", "MONGODB-UNREACHABLE")


def test_a_manifest_names_the_source_without_its_credentials(store: Store, tmp_path: Path) -> None:
    """Manifests are read by many who must not learn the password."""
    assert masked("mongodb://someone:pa55w0rd@h1:1,h2:2/town?replicaSet=x") == "mongodb://h1:1,h2:2/town"
    assert masked("mongodb+srv://someone:pa55w0rd@h/town") == "mongodb+srv://h/town"
    source = Database("mongodb://someone:pa55w0rd@h1/town?authSource=t0ken", "other")
    assert source.inputs == {"source": "mongodb://h1/town", "database": "town"}
    assert Database("mongodb://h1", "other").inputs["database"] == "other"


def test_a_refusal_an_absence_and_an_empty_database_have_codes_of_their_own(peer: Peer, store: Store) -> None:
    """Each has another fix: a role, a host name, a database name."""
    peer.refuse = (13, "Unauthorized")
    codes = [_code(store, peer.uri), _code(store, "mongodb://127.0.0.1:1/town?serverSelectionTimeoutMS=50")]
    peer.refuse = None
    del peer.collections["reviews"]
    codes.append(_code(store, peer.uri))
    assert codes == ["MONGODB-REFUSED", "MONGODB-UNREACHABLE", "SOURCE-NO-EVENTS"]
    assert store.names("lake") == []


def _code(store: Store, uri: str) -> str:
    with pytest.raises(InputError) as caught:
        collect(store, uri, DAY, config=CollectConfig())
    return caught.value.problem.code


def test_options_in_the_address_win_over_ours() -> None:
    """A site that needs a longer time-out or the primary must be able to say so."""
    client = Database("mongodb://h/?socketTimeoutMS=7000&readPreference=primary", "town")._connect()
    assert client.options.pool_options.socket_timeout == 7.0
    assert client.read_preference == pymongo.ReadPreference.PRIMARY
    client.close()
    client = Database("mongodb://h/", "town")._connect()
    assert client.options.pool_options.socket_timeout == 60.0
    assert client.read_preference == pymongo.ReadPreference.SECONDARY_PREFERRED
    client.close()


def test_a_real_server_gives_back_what_was_put_in(store: Store) -> None:
    """The peer is our own reading of the protocol; only a server can say that it is right."""
    uri = os.environ.get("TASTETWIN_TEST_MONGODB_URI")
    if not uri:
        pytest.skip("NOT TESTED AGAINST A REAL MONGODB: set TASTETWIN_TEST_MONGODB_URI to a server to write to")
    name = f"tastetwin_test_{os.getpid()}"
    client: pymongo.MongoClient[Document] = pymongo.MongoClient(uri)
    try:
        client[name]["reviews"].insert_many([review(n) | {"_id": n if n % 2 else f"s{n:02d}"} for n in range(25)])
        base, _, options = uri.partition("?")
        scheme, _, rest = base.partition("://")
        address = f"{scheme}://{rest.partition('/')[0]}/{name}?{options or 'appName=test'}"
        source = Database(address, name, part_documents=7, batch_documents=3)
        paths = [entry.path for entry in source.land(store, "lake/g", silent)["reviews"]]
        store.remove(paths[-1])
        again = [entry.path for entry in source.land(store, "lake/g", silent)["reviews"]]
        found = [orjson.loads(text)["review_id"] for text in landed_lines(store, again)]
        assert sorted(found) == sorted(f"r{n}" for n in range(25))
    finally:
        client.drop_database(name)
        client.close()
