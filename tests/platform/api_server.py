"""A small Kubernetes API server for Helm and kubectl: keeps objects, says that they are ready, lets a role do no more.

It has no admission, no defaults, no garbage collection and no events, and watches end at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import yaml

KINDS: Final = {
    "v1": {"pods": "Pod", "configmaps": "ConfigMap", "services": "Service", "serviceaccounts": "ServiceAccount"},
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "traefik.io/v1alpha1": {"ingressroutes": "IngressRoute"},
}
VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
Object = dict[str, Any]


class Api:
    """Objects by (resource, name), and what was asked that the rules do not allow."""

    def __init__(self, rules: list[Object]) -> None:
        self.rules, self.objects, self.refused = rules, dict[tuple[str, str], Object](), list[str]()
        self.lock, self.version = threading.Lock(), 0

    def allows(self, verb: str, group: str, resource: str) -> bool:
        """Whether a rule does."""
        wanted = (("verbs", verb), ("apiGroups", group), ("resources", resource))
        return any(all(value in rule[key] for key, value in wanted) for rule in self.rules)

    def keep(self, resource: str, name: str, new: Object, api: str) -> Object:
        """Written, seen by its controller, and ready."""
        self.version += 1
        new |= {"apiVersion": api, "kind": KINDS[api][resource]}
        new["metadata"] |= {"resourceVersion": str(self.version), "generation": 1, "uid": name}
        if resource == "deployments":
            count = new["spec"].get("replicas", 1)
            counted = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")
            progress = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
            conditions = [{"type": "Available", "status": "True"}, progress]
            new["status"] = {"observedGeneration": 1, "conditions": conditions} | dict.fromkeys(counted, count)
        if resource == "poddisruptionbudgets":
            new["status"] = {"observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 1}
        self.objects[resource, name] = new
        return new


def _about() -> dict[str, Object]:
    """Path -> what every server says of itself."""
    groups = [api for api in KINDS if "/" in api]
    said: dict[str, Object] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": [_group(api) for api in groups]},
        "/openapi/v3": {"paths": {_path(api)[1:]: {"serverRelativeURL": f"/openapi/v3{_path(api)}"} for api in KINDS}},
    }
    for api, kinds in KINDS.items():
        verbs = ["get", "list", "watch", *VERBS.values()]
        named = [{"name": name, "kind": kind, "namespaced": True, "verbs": verbs} for name, kind in kinds.items()]
        said[_path(api)] = {"kind": "APIResourceList", "groupVersion": api, "resources": named}
        said[f"/openapi/v3{_path(api)}"] = {"openapi": "3.0.0", "paths": _checked(api)}
    return said


def _path(api: str) -> str:
    return f"/apis/{api}" if "/" in api else f"/api/{api}"


def _group(api: str) -> Object:
    name, _, version = api.partition("/")
    one = {"groupVersion": api, "version": version}
    return {"name": name, "versions": [one], "preferredVersion": one}


def _checked(api: str) -> Object:
    """Fields are checked by the server: so Helm does not ask for their schemas."""
    group, _, version = api.rpartition("/")
    parameters = [{"name": "fieldValidation", "in": "query"}]
    kinds = ({"group": group, "version": version, "kind": kind} for kind in KINDS[api].values())
    return {
        f"/{each['kind']}": {"patch": {"parameters": parameters, "x-kubernetes-group-version-kind": each}}
        for each in kinds
    }


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Those of a protobuf message that are not numbers."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            at, byte = at + 1, data[at]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag, value = number(), number()
        if tag & 7 == 2:
            found.append((tag >> 3, data[at : at + value]))
            at += value
    return found


def _read(kind: str, body: bytes) -> Object:
    """JSON, YAML, or a ConfigMap in Kubernetes' protobuf, as Helm keeps its releases."""
    if "protobuf" not in kind:
        return dict(yaml.safe_load(body))
    fields = _fields(dict(_fields(body[4:]))[2])
    about = _fields(dict(fields)[1])
    labels, data = ({key.decode(): value.decode() for number, each in part if number == at
                     for key, value in [(dict(_fields(each))[1], dict(_fields(each)).get(2, b""))]}
                    for part, at in ((about, 11), (fields, 2)))  # fmt: skip
    return {"metadata": {"name": dict(about)[1].decode(), "labels": labels}, "data": data}


def _merged(under: Object, over: Object) -> Object:
    both = {**under, **over}
    mixed = {key: _merged(under[key], value) for key, value in over.items() if _are_objects(under.get(key), value)}
    return {key: value for key, value in (both | mixed).items() if value is not None}


def _are_objects(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api
    about = _about()

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def do_any(self) -> None:
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("content-length") or 0))
        if url.path in self.about:
            return self._say(200, self.about[url.path])
        before, _, after = url.path.partition("/namespaces/")
        place, query = after.split("/"), {key: value[0] for key, value in parse_qs(url.query).items()}
        api, (resource, name) = before.partition("/")[2].partition("/")[2], (place[1:] + [""] * 2)[:2]
        resource = "/".join([resource, *place[3:]])
        verb = VERBS.get(self.command) or ("watch" if "watch" in query else "get" if name else "list")
        if not self.api.allows(verb, api.rpartition("/")[0], resource):
            self.api.refused.append(f"{verb} {resource}")
            return self._say(403, {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403})
        if verb == "watch":
            return self._watch()
        with self.api.lock:
            self._say(*self._answer(verb, api, resource, name, query, body))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

    def _answer(
        self, verb: str, api: str, resource: str, name: str, query: dict[str, str], body: bytes
    ) -> tuple[int, Object]:
        every, gone = self.api.objects, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        if verb == "list":
            wanted = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
            items = [each for (kind, _), each in every.items()
                     if kind == resource and wanted.items() <= each["metadata"].get("labels", {}).items()]  # fmt: skip
            about = {"resourceVersion": str(self.api.version)}
            return 200, {"kind": f"{KINDS[api][resource]}List", "apiVersion": api, "metadata": about, "items": items}
        if verb in ("get", "delete"):
            found = every.get((resource, name)) if verb == "get" else every.pop((resource, name), None)
            return (200, found) if found else (404, gone)
        kind = self.headers["content-type"]
        new = _read(kind, body)
        name = name or new["metadata"]["name"]
        if "merge-patch" in kind:
            new = _merged(every[resource, name], new)
        return 200 if (resource, name) in every else 201, self.api.keep(resource, name, new, api)

    def _watch(self) -> None:
        """Nothing happens, and who asks is told so at once and asks again."""
        self.close_connection = True
        self._say(200, None)

    def _say(self, code: int, said: Object | None) -> None:
        body = b"" if said is None else json.dumps({"apiVersion": "v1", **said}).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # whoever watched has seen enough
            self.wfile.write(body)


@contextmanager
def serving(rules: list[Object]) -> Iterator[tuple[Api, str]]:
    """A server whose only caller has these rights, and its address."""
    api = Api(rules)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api})) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield api, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
