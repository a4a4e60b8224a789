"""The charts, rendered with every set of values: valid, safe, of one piece with the settings and the commands."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.main import get_command

from tastetwin import __version__
from tastetwin.cli import app as cli
from tastetwin.config import Config
from tests.platform.charts import (  # fmt: skip
    APP,
    CHARTS,
    HELM,
    MODEL,
    S3,
    SETS,
    Manifest,
    chooses,
    folder,
    helm,
    manifests,
    of_kind,
    pods,
    rendered,
)

VERSIONS = ("1.29", "1.33", "1.37")
"""Of Kubernetes: the oldest that the charts take, and newer ones."""
BUILT_IN = re.compile(
    r"^(v1|apps/v1|batch/v1|autoscaling/v2|policy/v1|(rbac\.authorization|networking|storage)\.k8s\.io/v1)$"
)
DEPLOYMENT = ["deploy_model", "deploy_app", "switch", "check", "remove_app", "remove_model", "rollback"]
"""Tasks of the DAG that deploys: pods with these names ask what they have started."""
PLURALS = {"NetworkPolicy": "networkpolicies"}
MONITORING = HELM.parent / "monitoring"
DASHBOARD = "dashboards/tastetwin.json"
each_set = pytest.mark.parametrize(("chart", "name"), SETS, ids=["-".join(each) for each in SETS])


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_schemas", HELM / "generate_schemas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values_of(chart: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((HELM / f"tastetwin-{chart}" / "values.yaml").read_text())
    return values


@each_set
def test_helm_finds_nothing_to_object_to(chart: str, name: str) -> None:
    """What lint warns of today breaks an upgrade tomorrow."""
    done = helm("lint", "--strict", "--quiet", folder(chart), values=SETS[chart, name])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@each_set
def test_every_manifest_is_valid_for_the_api_of(chart: str, name: str, version: str) -> None:
    """A field that an API server does not know is dropped without a word: a probe that never probes."""
    validate = pytest.importorskip("kubernetes_validate", reason="manifests need kubernetes-validate").validate
    for each in manifests(chart, name):
        if BUILT_IN.match(each["apiVersion"]):
            validate(each, version, strict=True)


def test_only_resources_of_operators_go_unchecked() -> None:
    """The check above must not pass over ours because of a group that is written wrong."""
    groups = {
        each["apiVersion"].partition("/")[0]
        for key in SETS
        for each in manifests(*key)
        if not BUILT_IN.match(each["apiVersion"])
    }
    assert groups == {
        "traefik.io", "monitoring.coreos.com", "kafka.strimzi.io", "postgresql.cnpg.io", "mongodbcommunity.mongodb.com",
        "k8ssandra.io", "elasticsearch.k8s.elastic.co", "kibana.k8s.elastic.co", "beat.k8s.elastic.co", "minio.min.io",
    }  # fmt: skip


@each_set
def test_no_pod_may_do_more_than_it_must(chart: str, name: str) -> None:
    """Whoever breaks into a server finds no root, no token, nothing to write to and no more CPU than was given."""
    for owner, pod in pods(manifests(chart, name)):
        spec, inside = pod["spec"], pod["spec"]["securityContext"]
        assert spec["automountServiceAccountToken"] is False and spec["serviceAccountName"], owner
        assert (
            inside["runAsNonRoot"] is True and inside["runAsUser"] == inside["runAsGroup"] == inside["fsGroup"] == 10001
        )
        assert inside["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not [each for each in spec["volumes"] if "hostPath" in each]
        for container in spec["containers"]:
            limits = container["securityContext"]
            assert limits["allowPrivilegeEscalation"] is False and limits["readOnlyRootFilesystem"] is True, owner
            assert limits["capabilities"] == {"drop": ["ALL"]} and not limits.get("privileged")
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and "memory" in container["resources"][
                "limits"
            ]
            assert not [port for port in container.get("ports", ()) if "hostPort" in port]


@each_set
def test_every_pod_is_behind_a_network_policy_that_denies_by_default(chart: str, name: str) -> None:
    """A backend asks nobody for a key: what may reach it is its only door."""
    found = manifests(chart, name)
    policies = [each["spec"] for each in of_kind(found, "NetworkPolicy")]
    assert policies or chart == "platform"
    for owner, pod in pods(found):
        mine = [each for each in policies if chooses(each["podSelector"], pod)]
        assert mine, owner
        assert all(sorted(each["policyTypes"]) == ["Egress", "Ingress"] for each in mine)
    for each in policies:
        assert all(rule.get("from") for rule in each.get("ingress", ())), "from nobody means from everybody"
        assert all(rule.get("to") or rule.get("ports") for rule in each["egress"])


def test_only_gateways_reach_a_backend_and_only_known_clients_a_gateway() -> None:
    """The tiers are doors behind doors; one policy too wide makes the inner ones worthless."""
    policy = of_kind(manifests("model", "least"), "NetworkPolicy")[0]["spec"]
    *ours, prometheus = (peer for rule in policy["ingress"] for peer in rule["from"] if "podSelector" in peer)
    assert [components_of(peer["podSelector"]) for peer in ours] == [["gateway"], DEPLOYMENT]
    assert prometheus["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    (gateway,) = (
        each
        for each in manifests("app", "least")
        if each["kind"] == "Deployment" and each["metadata"]["name"].endswith("gateway")
    )
    assert selects(ours[0]["podSelector"]["matchLabels"], gateway["spec"]["template"])
    egress = of_kind(manifests("app", "least"), "NetworkPolicy")
    (to,) = (each for each in egress if each["metadata"]["name"] == "it-gateway")
    peers = [peer["podSelector"]["matchLabels"] for rule in to["spec"]["egress"] for peer in rule.get("to", ())]
    (backend,) = of_kind(manifests("model", "least"), "Deployment")
    assert [selects(each, backend["spec"]["template"]) for each in peers] == [True]


@each_set
def test_what_selects_pods_finds_them_and_ports_have_their_names(chart: str, name: str) -> None:
    """A service that selects nothing answers nobody, and Kubernetes does not say so."""
    found = manifests(chart, name)
    every = dict(pods(found))
    for each in [*of_kind(found, "Service"), *of_kind(found, "PodDisruptionBudget"), *of_kind(found, "Deployment")]:
        spec = each["spec"]
        wanted = spec["selector"].get("matchLabels", spec["selector"])
        if spec.get("clusterIP") == "None":  # of the pods of a training, which Airflow starts with these labels
            assert wanted == {"app.kubernetes.io/part-of": "tastetwin", "app.kubernetes.io/component": "train"}
            continue
        mine = [pod for pod in every.values() if selects(wanted, pod)]
        if spec.get("clusterIP") == "None":  # of pods that Airflow starts for a training
            assert wanted == {"app.kubernetes.io/part-of": "tastetwin", "app.kubernetes.io/component": "train"}
            continue
        assert len(mine) == 1, each["metadata"]["name"]
        assert {port["targetPort"] for port in spec.get("ports", ())} <= ports_of(mine[0])
    for each in of_kind(found, "HorizontalPodAutoscaler"):
        (target,) = (
            d for d in of_kind(found, "Deployment") if d["metadata"]["name"] == each["spec"]["scaleTargetRef"]["name"]
        )
        assert "replicas" not in target["spec"], "the autoscaler's number would be undone by every upgrade"
    for each in of_kind(found, "ServiceMonitor"):
        (service,) = (s for s in of_kind(found, "Service") if s["metadata"]["name"] == each["metadata"]["name"])
        assert {end["port"] for end in each["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
        (dropped,) = [rule for end in each["spec"]["endpoints"] for rule in end["relabelings"]]
        assert dropped == {"action": "labeldrop", "regex": "pod|container|node"}, "rules sum without (instance) alone"


@each_set
def test_labels_say_what_belongs_together(chart: str, name: str) -> None:
    """Blue and green are told apart by labels, and cleaned up by them."""
    for each in manifests(chart, name):
        labels = each["metadata"].get("labels", {})
        if each["kind"] != "StorageClass":
            assert labels["app.kubernetes.io/part-of"] == "tastetwin" and labels["app.kubernetes.io/instance"] == "it"
            assert labels["app.kubernetes.io/version"] == __version__ and each["metadata"]["namespace"] == "taste"
            assert labels.get("tastetwin.io/run", "") == SETS[chart, name].get("run", {}).get("id", "")
        assert each["kind"] != "Secret", "keys come from outside; a chart's values are kept in the cluster, readable"


@each_set
def test_probes_reach_a_server_where_it_listens(chart: str, name: str) -> None:
    """A probe at a port of its own invention kills a healthy pod again and again."""
    for owner, pod in pods(manifests(chart, name)):
        if "terminationGracePeriodSeconds" in pod["spec"] and chart != "sandbox":
            assert pod["spec"]["terminationGracePeriodSeconds"] == 40, owner
        for container in pod["spec"]["containers"]:
            words = container.get("args", [])
            named = {port["name"]: str(port["containerPort"]) for port in container.get("ports", ())}
            probes = [
                container[kind]["httpGet"]
                for kind in ("startupProbe", "livenessProbe", "readinessProbe")
                if kind in container
            ]
            assert {probe["port"] for probe in probes} <= set(named) and (probes or not named)
            given = {words[at + 1] for at, word in enumerate(words) if word.endswith("-port") or word == "--port"}
            assert given == set(named.values()) or chart == "sandbox"


def test_ports_and_addresses_are_the_package_s_own() -> None:
    """Documentation, settings and charts name one port for one thing."""
    commands: Any = get_command(cli)
    serve = commands.commands["serve"].commands
    usual = {
        tier: {option.name: option.default for option in serve[tier].params}["port"]
        for tier in ("backend", "gateway", "app")
    }
    every = {
        k: ports_of(pod, "containerPort")
        for key in (("model", "least"), ("app", "events"))
        for k, pod in pods(manifests(*key))
    }
    assert {usual["backend"], 8201} == every["it-backend"] and {usual["gateway"], 8112} == every["it-gateway"]
    assert {usual["app"], 8113} == every["it-app"] and every["it-events"] == {8104}
    assert Config().app.gateway.endswith(f":{usual['gateway']}") and Config().gateway.backends[0].endswith(
        f":{usual['backend']}"
    )


@each_set
def test_every_command_of_a_pod_parses(chart: str, name: str) -> None:
    """An option that was renamed is found here, and not by a pod that does not start."""
    for _, pod in pods(manifests(chart, name)):
        for container in pod["spec"]["containers"]:
            if container.get("command", ["/bin/sh"])[0] != "/bin/sh" or chart == "sandbox":
                continue
            command: Any = get_command(cli)
            context = command.make_context("tastetwin", list(container["args"]))
            while hasattr(command, "commands") and (left := [*context._protected_args, *context.args]):
                verb, command, rest = command.resolve_command(context, left)
                context = command.make_context(verb, rest, parent=context)
            assert context.params.get("host", "0.0.0.0") == "0.0.0.0", "others must reach it"


def test_the_daily_job_is_that_of_the_last_day_that_is_over(tmp_path: Path) -> None:
    """A day that has just begun holds nothing yet: lists would claim to know it, and late data be told late."""
    (tmp_path / "tastetwin").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "tastetwin").chmod(0o755)
    (container,) = dict(pods(manifests("jobs", "daily")))["it-daily"]["spec"]["containers"]
    words, path = [*container["command"], *container["args"]], {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    before = datetime.now(UTC).date()
    said = subprocess.run(words, capture_output=True, text=True, env=path, timeout=10, check=True).stdout.split()
    days = {str(day - timedelta(days=1)) for day in (before, datetime.now(UTC).date())}
    assert said[:-1] == [*container["args"], "--date"] and said[-1] in days


@each_set
def test_the_settings_that_pods_read_are_settings_that_exist(chart: str, name: str) -> None:
    """Unknown keys are errors at the start of a pod: after the switch of a deployment, that is."""
    maps = [each for each in of_kind(manifests(chart, name), "ConfigMap") if "settings.yaml" in each["data"]]
    assert maps or chart == "platform"
    for each in maps:
        Config(**yaml.safe_load(each["data"]["settings.yaml"]))
    for _, pod in pods(manifests(chart, name)):
        for container in pod["spec"]["containers"]:
            for variable in container["env"]:
                section, _, key = variable["name"].removeprefix("TASTETWIN_").lower().partition("__")
                assert not key or key in type(getattr(Config(), section)).model_fields


def test_a_pinned_app_serves_its_run_and_a_gpu_computes() -> None:
    """The two settings that a chart derives from other values."""
    pinned, unpinned, gpu = (settings(*key) for key in (("app", "least"), ("app", "unpinned"), ("model", "gpu")))
    assert pinned.gateway.weights == {"2026-11-22.1": 1.0} and not unpinned.gateway.weights
    assert pinned.gateway.backends == APP["gateway"]["backends"] and pinned.app.gateway == "http://it-gateway:8102"
    assert gpu.backend.provider == "cuda" and gpu.backend.drain_seconds == 5.0
    (pod,) = (pod for _, pod in pods(manifests("model", "gpu")))
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": 1}
    assert pod["spec"]["runtimeClassName"] == "nvidia" and pod["spec"]["tolerations"]


def test_what_is_given_wins_over_what_a_chart_derives() -> None:
    """Somebody who tries two runs at once sets the weights, and must get them."""
    weights = {"2026-11-22.1": 0.9, "2026-11-23.1": 0.1}
    found = rendered("app", APP | {"settings": {"gateway": {"weights": weights, "max_k": 50}}})
    read = Config(**yaml.safe_load(of_kind(found, "ConfigMap")[0]["data"]["settings.yaml"]))
    assert read.gateway.weights == weights and read.gateway.max_k == 50


def test_other_settings_make_other_pods() -> None:
    """Settings are read at the start; an upgrade that leaves the old pods running changes nothing."""
    one, other = (rendered("app", APP | {"settings": {"app": {"page_size": size}}}) for size in (20, 30))
    annotations = [{owner: pod["metadata"]["annotations"] for owner, pod in pods(each)} for each in (one, other)]
    assert all(annotations[0][owner] != annotations[1][owner] for owner in annotations[0])


@pytest.mark.parametrize("chart", CHARTS)
def test_the_schema_is_the_one_that_the_values_and_the_settings_make(chart: str) -> None:
    """Values and schema move together: python deploy/helm/generate_schemas.py; a value needs a sentence."""
    module = generator()
    assert (HELM / f"tastetwin-{chart}" / "values.schema.json").read_text(encoding="utf-8") == module.rendered(chart)


@pytest.mark.parametrize(
    ("chart", "values", "said"),
    [
        ("model", MODEL | {"replicas": "two"}, "/replicas"),
        ("model", MODEL | {"replica": 2}, "replica"),
        ("model", MODEL | {"settings": {"backend": {"provider": "tpu"}}}, "/settings/backend/provider"),
        ("model", MODEL | {"settings": {"gateway": {}}}, "gateway"),
        ("model", MODEL | {"resources": {"requests": {"memory": "much"}}}, "/resources/requests/memory"),
        ("model", {}, "model.version"),
        ("app", {}, "gateway.backends"),
        ("app", APP | {"gateway": {"backends": ["10.0.0.1:8101"]}}, "/gateway/backends/0"),
        ("app", APP | {"settings": {"gateway": {"in_flight": 0}}}, "/settings/gateway/in_flight"),
        ("app", APP | {"run": {"id": "latest"}}, "/run/id"),
        ("app", APP | {"gateway": APP["gateway"] | {"replicas": 2}}, "state.redisSecret"),
        ("app", APP | {"app": {"autoscaling": {"enabled": True}}}, "state.redisSecret"),
        ("jobs", {"daily": {"enabled": True}}, "daily.source"),
        ("jobs", {"store": {"accessModes": ["Everybody"]}}, "/store/accessModes/0"),
        ("jobs", {"airflow": {"accounts": ["worker"]}}, "/airflow/accounts/0"),
        ("sandbox", {"home": {"size": "large"}}, "/home/size"),
        ("platform", {"kafka": {"enabled": "yes"}}, "/kafka/enabled"),
        ("platform", {"airflow": {"enabled": "yes"}}, "/airflow/enabled"),
        ("platform", {"connect": {"enabled": True}}, "connect.image"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(chart: str, values: dict[str, Any], said: str) -> None:
    """At the door, with the name of the value, and not by a pod at night."""
    done = helm("template", "it", folder(chart), values=values)
    assert done.returncode != 0 and said in done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_names_the_version_of_its_code_and_packs_whole(chart: str, tmp_path: Path) -> None:
    """The library is a link in the repository; what is shipped must have it inside."""
    about = yaml.safe_load((HELM / f"tastetwin-{chart}" / "Chart.yaml").read_text())
    assert about["appVersion"] == __version__
    done = helm("package", folder(chart), "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (pack,) = tmp_path.iterdir()
    assert helm("template", "it", pack, values=SETS[chart, "least"]).returncode == 0


@pytest.mark.parametrize("chart", CHARTS)
def test_the_notes_say_what_comes_next(chart: str) -> None:
    """Most people read nothing else."""
    done = helm("install", "it", folder(chart), "--dry-run=client", values=SETS[chart, "least"])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.partition("NOTES:")[2].strip()) > 50


def test_the_platform_pins_the_charts_of_others_and_installs_none_unasked() -> None:
    """A range or a default that is on would be somebody else's release in our cluster on some night."""
    about, values = yaml.safe_load((HELM / "tastetwin-platform" / "Chart.yaml").read_text()), values_of("platform")
    others = [each for each in about["dependencies"] if each["name"] != "tastetwin-common"]
    assert len(others) == 12
    for each in others:
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", each["version"]) and each["repository"].startswith("https://")
        name = each.get("alias", each["name"])
        assert each["condition"] == f"{name}.enabled" and values[name]["enabled"] is False
    assert manifests("platform", "least") == []


def test_connectors_read_and_write_the_topics_of_the_settings() -> None:
    """A topic that nobody reads is a queue that only grows."""
    found = manifests("platform", "all")
    topics = {each["metadata"]["name"]: each["spec"]["config"] for each in of_kind(found, "KafkaTopic")}
    app = Config().app
    assert set(topics) == {app.events_topic, app.twins_topic, app.dead_letter_topic}
    assert topics[app.twins_topic]["cleanup.policy"] == "compact" and "cleanup.policy" not in topics[app.events_topic]
    source, sink = (each["spec"]["config"] for each in of_kind(found, "KafkaConnector"))
    assert json.loads(source["topic.namespace.map"]) == {"*": app.events_topic} and sink["topics"] == app.twins_topic
    assert json.loads(source["pipeline"])[0]["$match"]["ns.coll"] == {"$in": ["reviews", "likes"]}
    assert "@" not in source["connection.uri"] and source["connection.uri"].startswith("${secrets:")


def test_prometheus_grafana_and_filebeat_are_given_what_is_tested(tmp_path: Path) -> None:
    """Rules that lie in a folder alarm nobody; a copy of them would be another's rules before long."""
    assert helm("package", folder("platform"), "--destination", tmp_path).returncode == 0
    (pack,) = tmp_path.iterdir()
    done = helm("template", "it", pack, values=SETS["platform", "all"])
    assert done.returncode == 0, done.stderr
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    rules = {each["metadata"]["name"]: each["spec"] for each in of_kind(found, "PrometheusRule")}
    assert rules == {f"it-{file.stem}": yaml.safe_load(file.read_text()) for file in MONITORING.glob("rules/*.yaml")}
    (shown,) = (each for each in of_kind(found, "ConfigMap") if "grafana_dashboard" in each["metadata"]["labels"])
    assert json.loads(shown["data"]["tastetwin.json"]) == json.loads((MONITORING / DASHBOARD).read_text())
    (beat,) = of_kind(found, "Beat")
    said = yaml.safe_load((MONITORING / "filebeat.yaml").read_text())
    assert beat["spec"]["config"] == {"filebeat.inputs": said["filebeat.inputs"]}


def test_a_deployment_may_ask_the_api_server_and_traefik_where_they_listen() -> None:
    """A policy sees the pods' port behind a service: with 443 alone `check` through `deploy.front` would hang."""
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests("jobs", "least"), "NetworkPolicy")}
    anywhere = [rule for rule in policies["it-deploy"]["egress"] if "to" not in rule]
    assert {443, 6443, 8443} <= {port["port"] for rule in anywhere for port in rule["ports"]}


def test_elasticsearch_starts_on_a_node_as_it_comes() -> None:
    """It refuses to start where it may map too little memory, and no pod here may change its node."""
    (search,) = of_kind(manifests("platform", "all"), "Elasticsearch")
    assert [each["config"] for each in search["spec"]["nodeSets"]] == [{"node.store.allow_mmap": False}]


def test_only_the_route_of_deployments_outlives_its_release() -> None:
    """One that is kept without what it leads to, or through, answers 404 in the place of whatever comes next."""
    for key, kept in ((("platform", "all"), [True] * 3), (("app", "route"), [False] * 3)):
        parts = [each for each in manifests(*key) if each["apiVersion"].startswith("traefik.io")]
        assert ["helm.sh/resource-policy" in each["metadata"].get("annotations", {}) for each in parts] == kept


@pytest.mark.parametrize("key", [("jobs", "airflow"), ("platform", "all")], ids=str)
def test_no_role_may_do_everything(key: tuple[str, str]) -> None:
    """A star in a role is the whole namespace to whoever gets hold of its token."""
    for role in of_kind(manifests(*key), "Role"):
        assert not [rule for rule in role["rules"] if "*" in rule["verbs"] + rule["resources"] + rule["apiGroups"]]
        assert all(rule.get("resourceNames") for rule in role["rules"] if "secrets" in rule["resources"]), "all keys"


def test_a_deployment_may_make_what_our_charts_are_made_of_and_nothing_else() -> None:
    """A kind too few stops every deployment, a kind too many is a way to the rest of the namespace."""
    role = next(each for each in of_kind(manifests("jobs", "least"), "Role") if each["metadata"]["name"] == "it-deploy")
    made = [each for key in SETS if key[0] in ("model", "app") for each in manifests(*key)]
    kinds = {
        (each["apiVersion"].rpartition("/")[0], PLURALS.get(each["kind"], f"{each['kind'].lower()}s")) for each in made
    }
    written = {
        (group, resource)
        for rule in role["rules"]
        if "create" in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert written == kinds


def test_only_the_pod_that_asks_databases_has_their_passwords() -> None:
    """What is pushed to Prometheus every five minutes needs none."""
    found = dict(pods(manifests("jobs", "daily")))
    with_secret = [name for name, pod in found.items() if any("secret" in each for each in pod["spec"]["volumes"])]
    assert set(found) == {"it-daily", "it-metrics"} and with_secret == ["it-daily"]


def test_only_pods_that_open_the_store_have_its_keys_and_a_way_to_it() -> None:
    """The app is what the world talks to: whoever breaks into it must not find the keys of everybody's lists."""
    values = APP | S3 | {"settings": {"app": {"brokers": "kafka:9092"}}}
    values["store"] = {**S3["store"], "port": 9000}
    found = rendered("app", values)
    keys = [name for name, pod in pods(found) if "tastetwin-s3" in str(pod["spec"]["containers"][0].get("envFrom"))]
    ways = [
        each["metadata"]["name"]
        for each in of_kind(found, "NetworkPolicy")
        if 9000 in [port["port"] for rule in each["spec"]["egress"] for port in rule.get("ports", ())]
    ]
    assert (keys, ways) == (["it-gateway"], ["it-gateway"])


def test_every_other_part_opens_a_store_that_lies_elsewhere() -> None:
    """A backend without its way to the store never gets ready."""
    for chart, name in (("model", "s3"), ("jobs", "s3"), ("sandbox", "least")):
        found = rendered(chart, SETS[chart, name] | {"store": {**S3["store"], "port": 9000}})
        for owner, pod in pods(found):
            assert "tastetwin-s3" in str(pod["spec"]["containers"][0].get("envFrom")), owner
        for each in of_kind(found, "NetworkPolicy"):
            assert 9000 in [port["port"] for rule in each["spec"]["egress"] for port in rule.get("ports", ())]


def test_the_platform_s_own_ingress_and_prometheus_are_let_in() -> None:
    """In the order of the page Traefik runs beside the app, not in a namespace of its own: every request would hang."""
    for chart, doors in (("model", ["prometheus"]), ("app", ["traefik", "prometheus"]), ("sandbox", ["traefik"])):
        policies = of_kind(manifests(chart, "least"), "NetworkPolicy")
        peers = [peer for each in policies for rule in each["spec"]["ingress"] for peer in rule["from"]]
        for name in doors:
            assert {"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}} in peers, (chart, name)


def components_of(selector: dict[str, Any]) -> list[str]:
    found = [each["values"] for each in selector.get("matchExpressions", ())]
    return [*found[0]] if found else [selector["matchLabels"]["app.kubernetes.io/component"]]


def selects(labels: dict[str, str], pod: Manifest) -> bool:
    return bool(labels.items() <= pod["metadata"]["labels"].items())


def ports_of(pod: Manifest, what: str = "name") -> set[Any]:
    return {port[what] for container in pod["spec"]["containers"] for port in container.get("ports", ())}


def settings(chart: str, name: str) -> Config:
    return Config(**yaml.safe_load(of_kind(manifests(chart, name), "ConfigMap")[0]["data"]["settings.yaml"]))
