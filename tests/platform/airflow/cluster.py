"""A stand-in for a Kubernetes API server: as much of it as Airflow's operators ask for, every pod a podman container.

Standard library only, since it runs in Airflow's environment. It checks the token, keeps what it was sent, and hands
pods to ``podman kube play``, which makes of them what a node would: user, read-only root, dropped capabilities, memory
limit, volumes (a claim is a podman volume of that name). It has no scheduler, admission, network policy or watch.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PODS = r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods"
JOBS = r"/apis/batch/v1/namespaces/(?P<namespace>[^/]+)/jobs"
RAY_JOBS = r"/apis/ray.io/v1/namespaces/(?P<namespace>[^/]+)/rayjobs"
NAME = r"/(?P<name>[^/]+)"


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def podman(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    """What podman says."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise Refused(500, f"podman {' '.join(arguments)}: {done.stderr}")
    return done.stdout


class Cluster:
    """Pods, Jobs and RayJobs of one cluster, and everything that was ever created in it."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.token, self.ray_ends = folder, token, ""
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs: dict[tuple[str, str], dict[str, Any]] = {}
        self.ray_jobs: dict[tuple[str, str], dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kube_config(self) -> str:
        """For an Airflow connection."""
        server = f"http://127.0.0.1:{self.server.server_address[1]}"
        named = {"clusters": [{"name": "c", "cluster": {"server": server}}]}
        named |= {"users": [{"name": "u", "user": {"token": self.token}}]}
        named |= {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
        return json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "x", **named})

    def close(self) -> None:
        """Leave no container behind."""
        self.server.shutdown()
        for pod in list(self.pods.values()):
            self._stop(pod)

    def create_pod(self, namespace: str, pod: dict[str, Any], network: str = "none") -> dict[str, Any]:
        name = pod["metadata"]["name"]
        if (namespace, name) in self.pods:
            raise Refused(409, "AlreadyExists")
        pod["metadata"] |= {"namespace": namespace, "uid": name, "creationTimestamp": _now()}
        self.created.append(json.loads(json.dumps(pod)))
        self.pods[namespace, name] = pod
        played = self.folder / f"{name}.json"
        played.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", **_playable(pod)}))
        try:
            podman("kube", "play", "--network", network, str(played))
        except Refused as why:
            pod["status"] = {"phase": "Failed", "message": str(why)}
        return self.read_pod(namespace, name)

    def read_pod(self, namespace: str, name: str) -> dict[str, Any]:
        pod = _of(self.pods, namespace, name)
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            pod["status"] = _status(pod)
        return pod

    def list_pods(self, namespace: str, selector: str) -> dict[str, Any]:
        matching = [key for key, pod in self.pods.items() if key[0] == namespace and _matches(pod, selector)]
        return {"kind": "PodList", "apiVersion": "v1", "items": [self.read_pod(*key) for key in matching]}

    def patch_pod(self, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        self.read_pod(namespace, name)["metadata"]["labels"].update(patch["metadata"]["labels"])
        return self.read_pod(namespace, name)

    def delete_pod(self, namespace: str, name: str) -> dict[str, Any]:
        pod = self.read_pod(namespace, name)
        self._stop(pod)
        del self.pods[namespace, name]
        return pod

    def log(self, namespace: str, name: str, query: dict[str, str]) -> list[bytes]:
        """Who follows gets all of it at the end: podman leaves followers of a log file before that."""
        self.read_pod(namespace, name)
        container = f"{name}-{query.get('container', 'base')}"
        if query.get("follow") == "True":
            podman("wait", container, timeout=600)
        chosen = ["--timestamps"] if query.get("timestamps") == "True" else []
        chosen += ["--tail", query["tailLines"]] if "tailLines" in query else []
        done = subprocess.run(["podman", "logs", *chosen, container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return [done.stdout]

    def create_job(self, namespace: str, job: dict[str, Any]) -> dict[str, Any]:
        """An Indexed Job: pods that share the host's network, since no DNS resolves <job>-0.<service>."""
        name = job["metadata"]["name"]
        if (namespace, name) in self.jobs:
            raise Refused(409, "AlreadyExists")
        self.jobs[namespace, name] = job
        job["metadata"]["namespace"] = namespace
        for index in range(job["spec"]["completions"]):
            self.create_pod(namespace, _indexed(job, index), network="host")
        return job

    def read_job(self, namespace: str, name: str) -> dict[str, Any]:
        job = _of(self.jobs, namespace, name)
        phases = [pod["status"]["phase"] for pod in self._pods_of(namespace, name)]
        ended = "Failed" if "Failed" in phases else "Complete" if set(phases) == {"Succeeded"} else ""
        condition = {"type": ended, "status": "True", "reason": "BackoffLimitExceeded"}
        job["status"] = {"conditions": [condition] if ended else [], "succeeded": phases.count("Succeeded")}
        return job

    def delete_job(self, namespace: str, name: str) -> dict[str, Any]:
        _of(self.jobs, namespace, name)
        for pod in self._pods_of(namespace, name):
            self.delete_pod(namespace, pod["metadata"]["name"])
        return self.jobs.pop((namespace, name))

    def create_ray_job(self, namespace: str, job: dict[str, Any]) -> dict[str, Any]:
        self.created.append(json.loads(json.dumps(job)))
        self.ray_jobs[namespace, job["metadata"]["name"]] = job
        return job

    def read_ray_job(self, namespace: str, name: str) -> dict[str, Any]:
        job = _of(self.ray_jobs, namespace, name)
        job["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": self.ray_ends, "jobId": f"ray-{name}"}
        return job

    def delete_ray_job(self, namespace: str, name: str) -> dict[str, Any]:
        _of(self.ray_jobs, namespace, name)
        return self.ray_jobs.pop((namespace, name))

    def _pods_of(self, namespace: str, job: str) -> list[dict[str, Any]]:
        return list(self.list_pods(namespace, f"batch.kubernetes.io/job-name={job}")["items"])

    def _stop(self, pod: dict[str, Any]) -> None:
        podman("pod", "rm", "--force", "--time", "0", pod["metadata"]["name"], check=False)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _of(things: dict[tuple[str, str], dict[str, Any]], namespace: str, name: str) -> dict[str, Any]:
    if (namespace, name) not in things:
        raise Refused(404, "NotFound")
    return things[namespace, name]


def _playable(pod: dict[str, Any]) -> dict[str, Any]:
    """Without nodes to choose from; what is emptied with a pod belongs to one pod, while podman goes by the name."""
    name, spec = pod["metadata"]["name"], json.loads(json.dumps(pod["spec"]))
    own = {each["name"] for each in spec.get("volumes", []) if "emptyDir" in each}
    for each in (*spec.get("volumes", []), *(mount for one in spec["containers"] for mount in one["volumeMounts"])):
        each["name"] = f"{name}-{each['name']}" if each["name"] in own else each["name"]
    kept = {key: value for key, value in spec.items() if key not in ("nodeSelector", "tolerations", "subdomain")}
    return {"metadata": {"name": name}, "spec": kept}


def _status(pod: dict[str, Any]) -> dict[str, Any]:
    """Of the pod's only container."""
    container = pod["spec"]["containers"][0]
    seen = json.loads(podman("inspect", f"{pod['metadata']['name']}-{container['name']}"))[0]["State"]
    if seen["Status"] in ("exited", "stopped"):
        code = seen["ExitCode"]
        phase = "Failed" if code else "Succeeded"
        state = {"terminated": {"exitCode": code, "finishedAt": _now(), "reason": "Error" if code else "Completed"}}
    else:
        phase, state = "Running", {"running": {"startedAt": _now()}}
    one = {"name": container["name"], "image": container["image"], "imageID": "", "ready": True, "restartCount": 0}
    scheduled = {"type": "PodScheduled", "status": "True"}
    return {"phase": phase, "conditions": [scheduled], "containerStatuses": [{**one, "state": state}]}


def _matches(pod: dict[str, Any], selector: str) -> bool:
    labels = pod["metadata"].get("labels", {})
    for each in filter(None, selector.split(",")):
        if each.startswith("!"):
            fits = each[1:] not in labels
        elif "!=" in each:
            fits = labels.get(each.split("!=")[0]) != each.split("!=")[1]
        else:
            fits = labels.get(each.split("=")[0]) == each.split("=")[1]
        if not fits:
            return False
    return True


def _indexed(job: dict[str, Any], index: int) -> dict[str, Any]:
    """What the Job controller makes of the template."""
    pod = json.loads(json.dumps(job["spec"]["template"]))
    name, spec = job["metadata"]["name"], pod["spec"]
    pod["metadata"] |= {"name": f"{name}-{index}-pod"}
    marks = {"job-name": name, "job-completion-index": str(index)}
    pod["metadata"]["labels"] |= {f"batch.kubernetes.io/{key}": value for key, value in marks.items()}
    container = spec["containers"][0]
    found = {"$(JOB_COMPLETION_INDEX)": str(index), f"{name}-0.{spec['subdomain']}": "127.0.0.1"}
    container["args"] = [found.get(each, each) for each in container["args"]]
    return dict(pod)


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("POST", PODS, lambda body, query, namespace: cluster.create_pod(namespace, body)),
        ("GET", PODS, lambda body, query, namespace: cluster.list_pods(namespace, query.get("labelSelector", ""))),
        ("GET", PODS + NAME, lambda body, query, **where: cluster.read_pod(**where)),
        ("PATCH", PODS + NAME, lambda body, query, **where: cluster.patch_pod(**where, patch=body)),
        ("DELETE", PODS + NAME, lambda body, query, **where: cluster.delete_pod(**where)),
        ("GET", PODS + NAME + "/log", lambda body, query, **where: cluster.log(**where, query=query)),
        ("GET", r"/api/v1/namespaces/[^/]+/events", lambda body, query: {"kind": "EventList", "items": []}),
        ("POST", JOBS, lambda body, query, namespace: cluster.create_job(namespace, body)),
        ("GET", JOBS + NAME + "(/status)?", lambda body, query, **where: cluster.read_job(**where)),
        ("DELETE", JOBS + NAME, lambda body, query, **where: cluster.delete_job(**where)),
        ("POST", RAY_JOBS, lambda body, query, namespace: cluster.create_ray_job(namespace, body)),
        ("GET", RAY_JOBS + NAME, lambda body, query, **where: cluster.read_ray_job(**where)),
        ("DELETE", RAY_JOBS + NAME, lambda body, query, **where: cluster.delete_ray_job(**where)),
    ]

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            url = urlsplit(self.path)
            cluster.asked.append(f"{self.command} {url.path}")
            try:
                answer = self.answer(url.path, {key: value[-1] for key, value in parse_qs(url.query).items()})
            except Refused as refused:
                self.reply(refused.status, [json.dumps({"kind": "Status", "message": str(refused)}).encode()])
            else:
                self.reply(200, [json.dumps(answer).encode()] if isinstance(answer, dict) else answer)

        def answer(self, path: str, query: dict[str, str]) -> Any:
            if self.headers.get("authorization") != f"Bearer {cluster.token}":
                raise Refused(401, "Unauthorized")
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
            for method, pattern, work in routes:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    return work(body, query, **found.groupdict())
            raise Refused(501, f"the stand-in has no {self.command} {path}")

        def reply(self, status: int, parts: Iterable[bytes]) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            for part in parts:
                self.wfile.write(part)

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    for method in ("GET", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    return Handler
