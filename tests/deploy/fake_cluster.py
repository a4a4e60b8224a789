"""Stands in for ``helm`` and ``kubectl``: ``python fake_cluster.py helm|kubectl ...``, a cluster in one JSON file.

Knows what ``tastetwin deploy`` asks, answers in the form of the real tools (Helm 4.1, kubectl 1.34), refuses all else.
In the folder ``FAKE_CLUSTER``: ``cluster.json`` (releases, the route, all calls), ``ports.json`` (service -> port of a
real server), and ``kill`` ("N before" or "N after": the command that makes the Nth change is killed with -9).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE_CLUSTER"])
NAMESPACE = "tastetwin"
TIERS = {"tastetwin-model": ["backend"], "tastetwin-app": ["gateway", "app"]}


def main(tool: str, words: list[str]) -> None:
    """One call."""
    assert tool != "helm" or os.environ["HELM_DRIVER"] == "configmap", "the deployer may read no secrets"
    assert words[words.index("-n") + 1] == NAMESPACE
    words = [word for at, word in enumerate(words) if word != "-n" and (at == 0 or words[at - 1] != "-n")]
    if words[0] == "port-forward":
        return forward(words[1])
    with (FOLDER / "cluster.json").open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        state = json.load(handle)
        state["calls"].append([tool, *words])
        before = json.dumps(state, sort_keys=True)
        answer = globals()[f"{tool}_{words[0]}"](state, words[1:])
        changed = json.dumps(state, sort_keys=True) != before
        kill = killed(state) if changed else ""
        if kill != "before":
            save(handle, state)
        elif words[:2] == ["upgrade", "--install"]:  # as Helm leaves it
            state["releases"][words[2]] |= {"status": "pending-install", "updated": now(-3_600)}
            save(handle, state)
    if kill:
        os.kill(os.getppid(), signal.SIGKILL)
    print(answer, end="")


def save(handle: Any, state: dict[str, Any]) -> None:
    """Write it back."""
    handle.seek(0)
    handle.truncate()
    json.dump(state, handle)


def killed(state: dict[str, Any]) -> str:
    """Whether the caller is killed at this change, and when."""
    state["changes"] += 1
    order = FOLDER / "kill"
    number, _, when = order.read_text().partition(" ") if order.exists() else ("0", "", "")
    return when if state["changes"] == int(number) else ""


def now(seconds: float = 0) -> str:
    """As Helm writes it by ``--time-format``."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def fail(text: str) -> str:
    """What a tool does that cannot do it."""
    print(f"Error: {text}", file=sys.stderr)
    sys.exit(1)


def helm_list(state: dict[str, Any], words: list[str]) -> str:
    """``helm list``."""
    return json.dumps([{"name": name, **each} for name, each in sorted(state["releases"].items())])


def helm_upgrade(state: dict[str, Any], words: list[str]) -> str:
    """``helm upgrade --install``."""
    assert words[0] == "--install" and "--wait" in words, words
    name, chart = words[1], words[2].rpartition("/")[2]
    known = state["releases"].get(name)
    if known is not None and known["status"].startswith("pending"):
        return fail("UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress")
    if known is not None and known["status"] == "uninstalling":
        return fail(f'UPGRADE FAILED: "{name}" has no deployed releases')
    sets = [word for at, word in enumerate(words) if words[at - 1].startswith("--set")]
    if any(each in state["broken"] for each in sets):
        state["releases"][name] = {"chart": chart, "sets": sets, "status": "failed", "updated": now()}
        (FOLDER / "cluster.json").write_text(json.dumps(state))
        return fail("resource Deployment/tastetwin not ready. status: InProgress: context deadline exceeded")
    if known is None or known["sets"] != sets or known["status"] != "deployed":
        state["releases"][name] = {"chart": chart, "sets": sets, "status": "deployed", "updated": now()}
    return ""


def helm_rollback(state: dict[str, Any], words: list[str]) -> str:
    """``helm rollback``."""
    state["releases"][words[0]] |= {"status": "deployed", "updated": now()}
    return ""


def helm_uninstall(state: dict[str, Any], words: list[str]) -> str:
    """``helm uninstall``."""
    assert "--ignore-not-found" in words and "--wait" in words, words
    state["releases"].pop(words[0], None)
    return ""


def kubectl_get(state: dict[str, Any], words: list[str]) -> str:
    """``kubectl get``: deployments, pods, the route."""
    if words[0] == "ingressroute":
        return json.dumps(state["route"]) if state["route"] else ""
    labels = dict(each.split("=") for each in words[words.index("-l") + 1].split(","))
    items = [item for name, each in state["releases"].items() for item in objects(words[0], name, each)]
    return json.dumps({"items": [item for item in items if labels.items() <= item["metadata"]["labels"].items()]})


def objects(kind: str, name: str, release: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a release."""
    ready = release["status"] == "deployed"
    found = []
    for tier in TIERS[release["chart"]]:
        labels = {f"app.kubernetes.io/{key}": value for key, value in
                  {"instance": name, "component": tier, "part-of": "tastetwin"}.items()}  # fmt: skip
        if kind == "deployments":
            status = {"observedGeneration": 1, **({"readyReplicas": 2} if ready else {})}
            found.append({"metadata": {"name": f"{name}-{tier}", "generation": 1, "labels": labels},
                          "spec": {"replicas": 2}, "status": status})  # fmt: skip
        else:
            runs = {"podIP": "10.0.0.9", "containerStatuses": [{"started": True}]}
            states = [runs, *release.get("more", ())]
            found += [{"metadata": {"name": f"{name}-{tier}-{number}", "labels": labels}, "status": status}
                      for number, status in enumerate(states)]  # fmt: skip
    return found


def kubectl_patch(state: dict[str, Any], words: list[str]) -> str:
    """``kubectl patch --type=merge`` of the route."""
    assert words[:3] == ["ingressroute", "tastetwin", "--type=merge"], words
    patch, route = json.loads(words[4]), state["route"]
    if patch["metadata"]["resourceVersion"] != route["metadata"]["resourceVersion"]:
        return fail(
            'Operation cannot be fulfilled on ingressroutes.traefik.io "tastetwin": the object has been modified'
        )
    notes = route["metadata"].get("annotations", {}) | patch["metadata"]["annotations"]
    kept = {name: value for name, value in notes.items() if value is not None}
    if (route["spec"]["routes"], route["metadata"].get("annotations")) != (patch["spec"]["routes"], kept):
        route["spec"]["routes"], route["metadata"]["annotations"] = patch["spec"]["routes"], kept
        route["metadata"]["resourceVersion"] = str(int(route["metadata"]["resourceVersion"]) + 1)
    return ""


def forward(what: str) -> None:
    """``kubectl port-forward``: the address of a real server."""
    name = what.partition("/")[2]
    released = json.loads((FOLDER / "cluster.json").read_text())["releases"]
    port = json.loads((FOLDER / "ports.json").read_text()).get(name)
    if port is None or not any(name.startswith(each) for each in released):
        fail(f'services "{name}" not found')
    print(f"Forwarding from 127.0.0.1:{port} -> 8101", flush=True)
    time.sleep(600)


main(sys.argv[1], sys.argv[2:])
