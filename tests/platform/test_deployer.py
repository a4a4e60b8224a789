"""The deployer's role holds what real Helm and real kubectl ask for, and no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tastetwin.config import Config, DeployConfig
from tastetwin.deploy.kubernetes import KubernetesTarget
from tastetwin.errors import StoreError
from tests.platform.api_server import serving
from tests.platform.charts import HELM, ROOT, manifests, of_kind
from tests.platform.test_deploy_charts import RUN


def test_a_deployment_from_beginning_to_end_needs_no_more_than_its_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right too few is found at night; and were there one to read secrets, every key would be the deployer's."""
    (role,) = (each for each in of_kind(manifests("jobs", "least"), "Role") if each["metadata"]["name"] == "it-deploy")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{ROOT / '.tools/bin'}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("HELM_DRIVER", raising=False)
    monkeypatch.setattr("tastetwin.deploy.kubernetes.make_pack", lambda store, run: None)
    target = KubernetesTarget(None, Config(deploy=DeployConfig(charts=str(HELM), ready_seconds=30)), "")  # type: ignore[arg-type]
    services = [{"name": f"taste-app-none-{tier}", "port": 80} for tier in ("gateway", "app")]
    route = {"metadata": {"name": "tastetwin"}, "spec": {"routes": [{"match": "x", "services": services}]}}
    with serving(role["rules"]) as (api, url):
        api.keep("ingressroutes", "tastetwin", route, "traefik.io/v1alpha1")
        (tmp_path / "config").write_text(json.dumps(kube_config(url)))
        for _ in range(2):  # a step is given twice
            target.start_model(RUN)
            target.start_app(RUN)
        target.point(RUN.run_id, "2026-11-21.1")
        now = target.standing()
        assert (now.live, now.previous) == (RUN.run_id, "2026-11-21.1")
        assert now.models == now.apps == {RUN.run_id: True}
        target.stop_app(RUN.run_id)
        target.stop_model(RUN.run_id)
        assert api.refused == [] and list(api.objects) == [("ingressroutes", "tastetwin")]
        monkeypatch.setenv("HELM_DRIVER", "secret")
        with pytest.raises(StoreError, match="DEPLOY-TOOL"):
            target.standing()
        assert set(api.refused) == {"list secrets"}


def kube_config(url: str) -> dict[str, object]:
    context = {"name": "it", "context": {"cluster": "it", "user": "it", "namespace": "tastetwin"}}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [context],
        "current-context": "it",
    }
