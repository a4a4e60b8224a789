"""The protocol's public client against our process, over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tastetwin.analysis.encode import Encoder
from tastetwin.features.histories import Histories
from tastetwin.features.stage import read_histories
from tastetwin.generations import read_manifest
from tastetwin.model.batches import pad
from tastetwin.model.files import model_file
from tests.serving.backend.fakes import tensors
from tests.serving.backend.process import Process, backend
from tests.world import Journey

CLIENTS: dict[str, ModuleType] = {"http": tritonclient.http, "grpc": tritonclient.grpc}
TYPES = {"int64": "INT64", "float32": "FP32"}


@pytest.fixture(scope="module")
def process(journey: Journey) -> Iterator[Process]:
    with backend(journey.store, "--grpc-port", "0") as started:
        yield started


@pytest.fixture(scope="module")
def version(journey: Journey) -> str:
    return journey.first.generation("train")


@pytest.fixture(scope="module")
def histories(journey: Journey) -> Histories:
    features = read_manifest(journey.store, "features", journey.first.generation("features"))
    return read_histories(journey.store, features, 3)


@pytest.fixture(scope="module")
def truth(journey: Journey, histories: Histories, version: str) -> np.ndarray:
    model = model_file(journey.store, read_manifest(journey.store, "train", version))
    return Encoder(model, 100, 2_048).encode(histories)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, process: Process) -> Iterator[Any]:
    made = CLIENTS[request.param].InferenceServerClient(f"127.0.0.1:{process.ports[request.param]}")
    yield made
    made.close()


def library_of(client: Any) -> ModuleType:
    return CLIENTS["http" if isinstance(client, tritonclient.http.InferenceServerClient) else "grpc"]


def inputs_of(library: ModuleType, arrays: dict[str, np.ndarray], **options: Any) -> list[Any]:
    made = []
    for name, values in arrays.items():
        made.append(library.InferInput(name, list(values.shape), TYPES[str(values.dtype)]))
        made[-1].set_data_from_numpy(values, **options)
    return made


def test_health_and_metadata_are_the_protocols(client: Any, version: str) -> None:
    """Load balancers and clients ask before they send."""
    options = {"as_json": True} if library_of(client) is tritonclient.grpc else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("taste")
    assert client.is_model_ready("taste", version)
    assert not client.is_model_ready("taste", "2026-01-01-aaaaaaaaaaaa")
    assert client.get_server_metadata(**options)["name"] == "tastetwin"
    for asked in ("", version):
        found = client.get_model_metadata("taste", asked, **options)
        assert found["versions"] == [version]
        assert [each["name"] for each in found["inputs"]] == ["places", "visits", "ratings", "ages"]
        assert [each["datatype"] for each in found["inputs"]] == ["INT64", "FP32", "FP32", "FP32"]
        assert found["outputs"][0]["name"] == "vector"


@pytest.mark.parametrize("size", [1, 7, 200])
def test_vectors_are_the_encoders_however_they_are_batched(
    client: Any, histories: Histories, truth: np.ndarray, size: int
) -> None:
    """Online and in the daily job a history has one vector, or nobody could compare them."""
    library = library_of(client)
    for users in np.array_split(np.arange(len(truth))[: 3 * size], 3):
        inputs = inputs_of(library, pad(histories, users, 100).inputs())
        vectors = client.infer("taste", inputs).as_numpy("vector")
        assert np.abs(vectors - truth[users]).max() < 1e-5


def test_vectors_are_the_encoders_when_many_ask_at_once(process: Process, histories: Histories, truth: Any) -> None:
    """Rows of other requests are in the same calls."""
    library = tritonclient.http
    with library.InferenceServerClient(f"127.0.0.1:{process.ports['http']}", concurrency=32) as client:
        users = range(300)
        asked = [
            client.async_infer("taste", inputs_of(library, pad(histories, np.array([user]), 100).inputs()))
            for user in users
        ]
        found = np.concatenate([each.get_result().as_numpy("vector") for each in asked])
    assert np.abs(found - truth[:300]).max() < 1e-5


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_json_and_binary_give_the_same(process: Process, binary_in: bool, binary_out: bool) -> None:
    """They are spellings of one message."""
    library = tritonclient.http
    with library.InferenceServerClient(f"127.0.0.1:{process.ports['http']}") as client:
        arrays = tensors([[5, 6, 7], [8]])
        reference = client.infer("taste", inputs_of(library, arrays)).as_numpy("vector")
        outputs = [library.InferRequestedOutput("vector", binary_data=binary_out)]
        inputs = inputs_of(library, arrays, binary_data=binary_in)
        answer = client.infer("taste", inputs, outputs=outputs, request_id="a1")
    assert answer.get_response()["id"] == "a1"
    assert ("data" in answer.get_output("vector")) is not binary_out
    assert np.array_equal(answer.as_numpy("vector"), reference)


def test_typed_contents_give_the_same_as_raw_ones(process: Process) -> None:
    """A gRPC client may fill either."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    arrays = tensors([[5, 6, 7], [8]])
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{process.ports['grpc']}") as client:
        reference = client.infer("taste", inputs_of(tritonclient.grpc, arrays)).as_numpy("vector")
        request = service_pb2.ModelInferRequest(model_name="taste", id="a1")
        for name, values in arrays.items():
            tensor = request.inputs.add(name=name, datatype=TYPES[str(values.dtype)], shape=values.shape)
            field = "int64_contents" if values.dtype == np.int64 else "fp32_contents"
            getattr(tensor.contents, field).extend(values.ravel().tolist())
        stub = client._client_stub
        assert isinstance(stub, service_pb2_grpc.GRPCInferenceServiceStub)
        answer = stub.ModelInfer(request)
    assert answer.id == "a1"
    assert np.array_equal(np.array(answer.outputs[0].contents.fp32_contents, np.float32), reference.ravel())


def refused(client: Any, arrays: dict[str, np.ndarray], model: str = "taste", **options: Any) -> str:
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, inputs_of(library_of(client), arrays), **options)
    return f"{error.value.status()} {error.value.message()}"


def test_refusals_have_the_protocols_statuses(client: Any) -> None:
    """A client decides by the status whether to try again, elsewhere, or never."""
    http = library_of(client) is tritonclient.http
    arrays = tensors([[5, 6]])
    outputs = [library_of(client).InferRequestedOutput("vectors")]
    cases = {
        ("400", "INVALID_ARGUMENT", "BAD-INPUT"): refused(client, {**arrays, "places": arrays["places"] + 10**9}),
        ("404", "NOT_FOUND", "UNKNOWN-MODEL"): refused(client, arrays, model_version="2026-01-01-aaaaaaaaaaaa"),
        ("404", "NOT_FOUND", "UNKNOWN-MODEL: model 'nobody'"): refused(client, arrays, "nobody"),
        ("400", "INVALID_ARGUMENT", "BAD-INPUT: outputs"): refused(client, arrays, outputs=outputs),
        ("413", "RESOURCE_EXHAUSTED", "TOO-LARGE"): refused(client, tensors([[5]] * 257)),
        ("504", "DEADLINE_EXCEEDED", "DEADLINE-PASSED"): refused(client, tensors([[5] * 500] * 200), timeout=1),
    }
    for (status, name, said), message in cases.items():
        assert (status if http else name) in message
        assert said in message


def test_a_bad_item_fails_alone(process: Process, histories: Histories, truth: np.ndarray) -> None:
    """One strange history among requests that share calls."""
    library = tritonclient.http
    with library.InferenceServerClient(f"127.0.0.1:{process.ports['http']}", concurrency=32) as client:
        asked = []
        for user in range(60):
            arrays: dict[str, Any] = pad(histories, np.array([user]), 100).inputs()
            if user % 3 == 0:
                arrays["places"] = arrays["places"] * 0 + 10**6
            if user % 3 == 1:
                arrays["visits"] = arrays["visits"] * np.float32(np.nan)
            asked.append(client.async_infer("taste", inputs_of(library, arrays)))
        for user, each in enumerate(asked):
            if user % 3 == 2:
                assert np.abs(each.get_result().as_numpy("vector") - truth[user]).max() < 1e-5
            else:
                with pytest.raises(InferenceServerException, match="BAD-INPUT"):
                    each.get_result()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/taste/versions//infer", 404),
        ("GET", "/v2/models/taste/versions/../../../etc/passwd", 404),
        ("GET", "/v2/models/taste/infer", 405),
        ("DELETE", "/v2/models/taste", 405),
        ("POST", "/v2/repository/index", 404),
        ("POST", "/v2/repository/models/taste/unload", 404),
        ("POST", "/v2/models/taste/infer", 400),
        ("GET", "/metrics", 200),
        ("GET", "/v2", 200),
    ],
)
def test_every_other_address_is_refused(process: Process, method: str, path: str, status: int) -> None:
    """Versions cannot be changed where requests come in, and nothing is served by accident."""
    found, value = process.ask(method, path)
    assert found == status
    if status >= 400:
        assert value["error"].startswith(value["problem"]["code"])


@pytest.mark.parametrize(
    "headers",
    [{"content_length": "99999999999"}, {"content_length": "0" * 5000 + "2"}, {"content_encoding": "gzip"}],
)
def test_a_body_that_will_not_be_read_is_refused_at_once(process: Process, headers: dict[str, str]) -> None:
    """Before memory is spent on it."""
    status, value = process.ask("POST", "/v2/models/taste/infer", b"{}", **headers)
    assert status in (400, 413)
    assert value["problem"]["code"] in ("BAD-INPUT", "TOO-LARGE")


def test_what_is_counted_holds_nothing_of_a_user(process: Process) -> None:
    """Metrics are read by many; they say outcomes, sizes and times."""
    body = orjson.dumps({"inputs": [{"name": "user-of-mine", "datatype": "INT64", "shape": [1], "data": [1]}]})
    assert process.ask("POST", "/v2/models/taste/infer", body)[0] == 400
    text = process.ask("GET", "/metrics")[1]
    assert 'tastetwin_backend_requests_total{outcome="BAD-INPUT"}' in text
    assert "user-of-mine" not in text
    for name in ("requests_total", "seconds", "queue_rows", "batch_rows", "favors", "padding"):
        assert f"tastetwin_backend_{name}" in text
