"""Job manifests: what happens to a pod with an exit code, and addresses of processes."""

import dataclasses
import re

import pytest
import yaml

from tests.support.job_examples import JOBS, job_file
from vit_jax.distributed import job_manifests
from vit_jax.distributed.job import AGAIN, PREEMPTED


def documents(engine: str) -> dict[str, dict]:
    """Returns the documents of a job file by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(job_file(engine))}


def jobset_spec(engine: str) -> dict:
    if engine == "jobset":
        return documents(engine)["JobSet"]["spec"]
    return documents(engine)["TrainingRuntime"]["spec"]["template"]["spec"]


def action(spec: dict, code: int | None, is_disrupted: bool = False) -> str:
    """Returns what JobSet does after a pod ends, by the rules of Kubernetes and JobSet.

    Args:
      spec: spec of a JobSet.
      code: exit code of the container; None if it has none, as on a lost node.
      is_disrupted: True if the pod has the condition DisruptionTarget.
    """
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["backoffLimit"] == 0
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for i, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes:
            assert codes["values"] == sorted(set(codes["values"]))
            is_in = code in codes["values"]
            applies = code is not None and is_in == (codes["operator"] == "In")
        else:
            assert conditions == [{"type": "DisruptionTarget", "status": "True"}]
            applies = is_disrupted
        if applies:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            message = f"Container node for pod a/b failed with exit code {code} matching FailJob "
            message += f"rule at index {i}"
            break
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        is_match = any(re.search(pattern, message) for pattern in patterns)
        if reason in rule["onJobFailureReasons"] and is_match:
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("engine", ["jobset", "kubeflow"])
def test_jobset_restarts_after_preemptions_and_failures_and_fails_after_errors(engine):
    spec = jobset_spec(engine)
    for code in range(1, 256):
        expected = "RestartJobSet" if code in AGAIN else "FailJobSet"
        if code in PREEMPTED:
            expected = "RestartJobSetAndIgnoreMaxRestarts"
        assert action(spec, code) == expected, code
        assert action(spec, code, is_disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(spec, None) == "RestartJobSet"
    assert action(spec, None, is_disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert spec["failurePolicy"]["maxRestarts"] == 5


@pytest.mark.parametrize("engine", ["jobset", "kubeflow"])
def test_pods_have_time_to_save_and_are_not_restarted_by_the_kubelet(engine):
    (replicated,) = jobset_spec(engine)["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "shared": "/shared"}
    assert {each["name"] for each in pod["volumes"]} == set(mounts)


def test_jobset_describes_the_processes_by_the_variables_of_jax():
    document = documents("jobset")["JobSet"]
    (replicated,) = document["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    env = {each["name"]: each for each in container["env"]}
    name, kind = document["metadata"]["name"], replicated["name"]
    # JobSet: <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-{kind}-0-0.{name}:29500"
    assert env["JAX_NUM_PROCESSES"]["value"] == str(spec["completions"]) == "4"
    assert spec["parallelism"] == 4
    assert spec["completionMode"] == "Indexed"
    assert "job-completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_train_job_refers_to_the_runtime_in_the_same_file():
    found = documents("kubeflow")
    runtime, job = found["TrainingRuntime"], found["TrainJob"]
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    assert job["spec"]["trainer"]["numNodes"] == 4  # Variables of JAX need this section.
    assert runtime["spec"]["mlPolicy"]["jax"] == {}


def test_containers_run_train_and_kubernetes_expands_nothing():
    changes = {"overrides": {"data.dir": "/a$(HOME)"}, "gpus": 0, "cpus": 0, "volume": None}
    job = dataclasses.replace(JOBS["jobset"], **changes)
    (replicated,) = yaml.safe_load(job_manifests.write_jobset(job, ""))["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][0] == "python"
    expanded = [text.replace("$$(", "$(") for text in container["command"][1:]]
    assert expanded == job.command
    assert "--config.data.dir=/a$$(HOME)" in container["command"]
    assert "resources" not in container


def test_skypilot_recovers_after_codes_of_preemptions_and_failures_but_not_of_killed_nodes():
    task = yaml.safe_load(job_file("skypilot"))
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [code for code in AGAIN if code != 137]
    assert recovery["max_restarts_on_errors"] == 0
    assert task["resources"]["accelerators"] == "H100:8"


@pytest.mark.parametrize(
    ("source", "field", "value"),
    [
        ("disk", "volumes", "disk"),
        ("gs://b", "file_mounts", {"source": "gs://b", "mode": "MOUNT"}),
    ],
)
def test_skypilot_mounts_volumes_and_buckets(source, field, value):
    job = dataclasses.replace(JOBS["skypilot"], volume=(source, "/shared"), image="vit:1")
    task = yaml.safe_load(job_manifests.write_skypilot(job, ""))
    assert task[field] == {"/shared": value}
    assert task["resources"]["image_id"] == "docker:vit:1"
    assert "setup" not in task
