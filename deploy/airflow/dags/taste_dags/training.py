"""Where training runs: in a pod like any stage, by torchrun on several nodes, or on a Ray cluster of its own."""

from __future__ import annotations

import shlex
import time
from typing import Any, Final

import yaml
from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.providers.cncf.kubernetes.operators.resource import KubernetesCreateResourceOperator
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException

from taste_dags.pods import DAY, manners, place, push, stage_arguments, stage_pod, template
from taste_dags.settings import RayTraining, Settings, TorchrunTraining

POLL: Final = 5.0
"""Seconds between two looks at a Job or RayJob."""
RAY: Final = ("ray.io", "v1", "rayjobs")


def training(settings: Settings) -> BaseOperator:
    """The task ``train``."""
    if isinstance(settings.training, TorchrunTraining):
        return torchrun_job(settings, settings.training)
    if isinstance(settings.training, RayTraining):
        return ray_job(settings, settings.training)
    return stage_pod(settings, "train")


class TrainingJob(KubernetesJobOperator):
    """An Indexed Job of one name a day, so that two trainings of a day never run side by side."""

    def execute(self, context: Context) -> None:
        """Put the Job there, wait for its end, keep what its first pod said.

        Raises:
            AirflowException: it failed; the next try goes on from the last checkpoint.
        """
        self.name = self._set_name(self.name)
        super().execute(context)  # does not wait: it would want the pods at once, and controllers take their time
        name, namespace = self.job.metadata.name, self.job.metadata.namespace
        self.job = self.hook.wait_until_job_complete(name, namespace, POLL)
        index = f"batch.kubernetes.io/job-name={name},batch.kubernetes.io/job-completion-index=0"
        for pod in self.client.list_namespaced_pod(namespace, label_selector=index).items[-1:]:
            self._write_logs(pod)
            push(self.client, pod, self.base_container_name, context)
        why = self.hook.is_job_failed(self.job)
        if why:
            raise AirflowException(f"Job {name}: {why}")

    def create_job(self, job_request_obj: Any) -> Any:
        """Put it in the place of what an earlier try or run left."""
        name, namespace = job_request_obj.metadata.name, job_request_obj.metadata.namespace
        try:
            self.job_client.delete_namespaced_job(name, namespace, propagation_policy="Foreground")
            while self.job_client.read_namespaced_job(name, namespace):
                time.sleep(POLL)
        except ApiException as error:
            if error.status != 404:
                raise
        return super().create_job(job_request_obj)


def torchrun_job(settings: Settings, how: TorchrunTraining) -> TrainingJob:
    """As many pods as nodes, which find the first by the headless service's name."""
    task, name = settings.tasks["train"], f"tastetwin-train-{DAY}"
    shape = template("train", task)
    shape["spec"]["subdomain"] = how.service
    return TrainingJob(
        **manners(settings, task),
        **place(settings, task),
        task_id="train",
        name=name,
        random_name_suffix=False,
        image=task.image,
        cmds=["torchrun"],
        arguments=[
            *("--nnodes", str(how.nodes), "--node-rank", "$(JOB_COMPLETION_INDEX)"),
            *("--nproc-per-node", str(how.processes)),
            *("--master-addr", f"job-{name}-0.{how.service}", "--master-port", str(how.port)),
            *("-m", "tastetwin", *stage_arguments(settings, "train"), *task.arguments),
        ],
        pod_template_dict=shape,
        completion_mode="Indexed",
        completions=how.nodes,
        parallelism=how.nodes,
        backoff_limit=0,
        ttl_seconds_after_finished=24 * 3600,
        get_logs=False,
        log_pod_spec_on_failure=False,
    )


class RayJob(KubernetesCreateResourceOperator):
    """KubeRay's RayJob, created and waited for; deleted if the task is killed."""

    body: dict[str, Any]

    def execute(self, context: Context) -> None:
        """Put the RayJob there and wait for its end.

        Raises:
            AirflowException: it failed; the next try goes on from the last checkpoint.
        """
        self.body = yaml.safe_load(self.yaml_conf)
        self.on_kill()
        self._until(lambda: self._status() is None)
        super().execute(context)
        self._until(lambda: (self._status() or {}).get("jobDeploymentStatus") in ("Complete", "Failed"))
        ended = self._status() or {}
        context["ti"].xcom_push(
            key="return_value", value={"ray_job": ended.get("jobId"), "status": ended.get("jobStatus")}
        )
        if ended.get("jobStatus") != "SUCCEEDED":
            raise AirflowException(f"RayJob {self.body['metadata']['name']}: {ended.get('jobStatus')}")

    def on_kill(self) -> None:
        """Leave nothing running."""
        try:
            self.hook.delete_custom_object(*RAY, self.body["metadata"]["name"], self.get_namespace())
        except ApiException as error:
            if error.status != 404:
                raise

    def _status(self) -> dict[str, Any] | None:
        try:
            found = self.hook.get_custom_object(*RAY, self.body["metadata"]["name"], self.get_namespace())
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found.get("status") or {}

    def _until(self, there: Any) -> None:
        while not there():
            time.sleep(POLL)


def ray_job(settings: Settings, how: RayTraining) -> RayJob:
    """torchrun on one node of a Ray cluster that lives as long as the training; its image needs Ray, too."""
    task = settings.tasks["train"]
    manifest = yaml.safe_dump(ray_manifest(settings, how), sort_keys=False, width=10_000)
    return RayJob(
        **manners(settings, task),
        **place(settings, task),
        task_id="train",
        yaml_conf=manifest,
        custom_resource_definition=True,
    )


def ray_manifest(settings: Settings, how: RayTraining) -> dict[str, Any]:
    """The RayJob, with the logical date still to be filled in."""
    task = settings.tasks["train"]
    command = ["torchrun", "--standalone", "--nproc-per-node", str(how.processes), "-m", "tastetwin"]
    command += [*stage_arguments(settings, "train"), *task.arguments]
    shape = template("train", task)
    about = {"labels": shape["metadata"]["labels"]}  # by which network policies hold a pod
    worker = {**shape["spec"]["containers"][0], "name": "worker", "image": task.image}
    head = {"name": "head", "image": task.image}
    head |= {key: task.container[key] for key in ("volumeMounts", "securityContext") if key in task.container}
    pod = {key: value for key, value in task.pod.items() if key not in ("nodeSelector", "tolerations", "affinity")}
    group = {"groupName": "train", "replicas": 1, "minReplicas": 1, "maxReplicas": 1, "rayStartParams": {}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"tastetwin-train-{DAY}", **about},
        "spec": {
            "entrypoint": shlex.join(command),
            "entrypointNumCpus": how.cpus,
            "entrypointNumGpus": how.gpus,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 0,
            # KubeRay's own would have no labels, and the head would not hear it.
            "submitterPodTemplate": {
                "metadata": about,
                "spec": {**pod, "restartPolicy": "Never", "containers": [{**head, "name": "submitter"}]},
            },
            "rayClusterSpec": {
                "rayVersion": how.version,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                    "template": {"metadata": about, "spec": {**pod, "containers": [head]}},
                },
                "workerGroupSpecs": [
                    {**group, "template": {"metadata": about, "spec": {**task.pod, "containers": [worker]}}}
                ],
            },
        },
    }
