"""The protocol's gRPC service, on the same event loop and queue as the HTTP routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import grpc
import grpc.aio

from tastetwin.errors import TasteTwinError
from tastetwin.serving.backend.http import body_limit
from tastetwin.serving.backend.model import OUTPUT, Floats
from tastetwin.serving.backend.refusals import status_of
from tastetwin.serving.backend.service import SERVER, Service
from tastetwin.serving.backend.wire import open_inference_pb2 as messages
from tastetwin.serving.protocol import MAX_TENSORS, Array, InferRequest, refuse, tensor_from_bytes, tensor_from_numbers

SERVICE: Final = "inference.GRPCInferenceService"
CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Type -> the field that holds its values; FP16 has none and comes raw."""

Context = Any
Method = Callable[[Any, Context], Awaitable[Any]]


class Grpc:
    """The service's methods, each message in, message out."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def server_live(self, request: Any, context: Context) -> Any:
        """Whether the process answers."""
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, context: Context) -> Any:
        """Whether new requests should come here."""
        return messages.ServerReadyResponse(ready=self._service.readiness.ready)

    async def model_ready(self, request: Any, context: Context) -> Any:
        """Whether a version is loaded."""
        try:
            self._service.repository.get(request.name, request.version)
        except TasteTwinError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: Any, context: Context) -> Any:
        """Name, version, extensions."""
        return messages.ServerMetadataResponse(**SERVER)

    async def model_metadata(self, request: Any, context: Context) -> Any:
        """Inputs and outputs."""
        return messages.ModelMetadataResponse(**self._service.metadata(request.name, request.version))

    async def model_infer(self, request: Any, context: Context) -> Any:
        """Vectors."""
        try:
            asked = read_request(request)
            version, vectors = await self._service.infer(
                request.model_name, request.model_version, asked, context.time_remaining()
            )
        except Exception as error:
            self._service.failed(error)
            raise
        return _response(request, version, vectors, is_raw=bool(request.raw_input_contents))

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        methods = {
            "ServerLive": (self.server_live, messages.ServerLiveRequest),
            "ServerReady": (self.server_ready, messages.ServerReadyRequest),
            "ModelReady": (self.model_ready, messages.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, messages.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, messages.ModelMetadataRequest),
            "ModelInfer": (self.model_infer, messages.ModelInferRequest),
        }
        handlers = {name: _unary(method, message) for name, (method, message) in methods.items()}
        return grpc.method_handlers_generic_handler(SERVICE, handlers)


def grpc_server(service: Service) -> grpc.aio.Server:
    """A server without a port yet; must be made on the event loop that it will run on."""
    limit = body_limit(service.config)
    options = [("grpc.max_receive_message_length", limit), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((Grpc(service).handler(),))
    return server


def read_request(request: Any) -> InferRequest:
    """A ``ModelInferRequest`` as the HTTP side has it.

    Raises:
        UsageError: OIP-MESSAGE.
    """
    inputs: dict[str, Array] = {}
    raw = request.raw_input_contents
    if len(request.inputs) > MAX_TENSORS or (raw and len(raw) != len(request.inputs)):
        refuse("inputs", f"{len(request.inputs)} and {len(raw)} raw", f"at most {MAX_TENSORS}, all of them raw or none")
    for number, each in enumerate(request.inputs):
        if each.name in inputs:
            refuse(f"tensor {each.name[:100]!r}", "a second time", "every tensor once")
        _no_shared_memory(each.name, each.parameters)
        inputs[each.name] = _tensor(each, raw[number] if raw else None)
    outputs = dict.fromkeys((each.name for each in request.outputs), True)
    parameters = {name: _value(value) for name, value in request.parameters.items()}
    return InferRequest(inputs, outputs, request.id, parameters)


def _tensor(each: Any, raw: bytes | None) -> Array:
    name, datatype, shape = each.name[:100], each.datatype, list(each.shape)
    if raw is not None:
        if each.HasField("contents"):
            refuse(f"tensor {name!r}", "contents", "either contents or raw_input_contents, not both")
        return tensor_from_bytes(name, datatype, shape, raw)
    if datatype not in CONTENTS:
        refuse(f"tensor {name!r}", datatype, f"datatype is one of {', '.join(CONTENTS)}, or its data is raw")
    return tensor_from_numbers(name, datatype, shape, list(getattr(each.contents, CONTENTS[datatype])))


def _no_shared_memory(name: str, parameters: Iterable[str]) -> None:
    if any(key.startswith("shared_memory") for key in parameters):
        refuse(f"tensor {name[:100]!r}", "shared_memory", "shared memory is not served")


def _value(parameter: Any) -> Any:
    field = parameter.WhichOneof("parameter_choice")
    return None if field is None else getattr(parameter, field)


def _response(request: Any, version: str, vectors: Floats, *, is_raw: bool) -> Any:
    response = messages.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    output = response.outputs.add(name=OUTPUT, datatype="FP32", shape=vectors.shape)
    if is_raw:
        response.raw_output_contents.append(vectors.astype("<f4", copy=False).tobytes())
    else:
        output.contents.fp32_contents.extend(vectors.ravel().tolist())
    return response


def _unary(method: Method, message: Any) -> grpc.RpcMethodHandler:
    async def answered(request: Any, context: Context) -> Any:
        try:
            return await method(request, context)
        except TasteTwinError as error:
            await context.abort(getattr(grpc.StatusCode, status_of(error).grpc), str(error))

    return grpc.unary_unary_rpc_method_handler(
        answered, request_deserializer=message.FromString, response_serializer=lambda answer: answer.SerializeToString()
    )
