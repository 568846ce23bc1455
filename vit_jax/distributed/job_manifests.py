"""Job manifests in YAML: Kubeflow Trainer, JobSet and SkyPilot."""

import shlex

import yaml

from vit_jax.distributed.job import AGAIN, PREEMPTED, Job

COORDINATOR_PORT = 29500  # That of Kubeflow Trainer.
# Annotation of the pods of an indexed Job.
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
# SkyPilot kills all other nodes (137) when the command of one node fails, whatever the error.
AGAIN_SKYPILOT = [code for code in AGAIN if code != 137]


def write_jobset(job: Job, file: str) -> str:
    """Returns a JobSet with one indexed Job of a pod per node.

    JobSet creates the headless service that gives the first pod its name, and restarts all pods
    together: processes that are left cannot continue alone.
    """
    container = _container(job, "node")
    container["env"] += [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": _first_pod(job, "node", COORDINATOR_PORT)},
        {"name": "JAX_NUM_PROCESSES", "value": str(job.nodes)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
    ]
    jobs = {"parallelism": job.nodes, "completions": job.nodes, "completionMode": "Indexed"}
    spec = {"network": {"enableDNSHostnames": True}, **_jobset_spec(job, container, jobs)}
    return _dump(
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": _metadata(job),
            "spec": spec,
        }
    )


def write_kubeflow(job: Job, file: str) -> str:
    """Returns a TrainJob for Kubeflow Trainer v2, and the TrainingRuntime that it refers to.

    A TrainJob has no restart policy; that of the pods and of the JobSet is in the runtime, which is
    otherwise the predefined runtime `jax-distributed`. The variables of JAX are set by Trainer.
    """
    container = _container(job, "node")
    trainer = {
        "image": job.image,
        "numNodes": job.nodes,
        "command": container.pop("command"),
        "env": container.pop("env"),
    }
    if resources := container.pop("resources", None):
        trainer["resourcesPerNode"] = resources
    spec = _jobset_spec(job, container, {})
    spec["replicatedJobs"][0]["template"]["metadata"] = {
        "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    }
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": job.name, "labels": {"trainer.kubeflow.org/framework": "jax"}},
        "spec": {"mlPolicy": {"numNodes": job.nodes, "jax": {}}, "template": {"spec": spec}},
    }
    reference = {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": job.name,
    }
    train_job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(job),
        "spec": {"runtimeRef": reference, "trainer": trainer},
    }
    return _dump(runtime, train_job)


def _metadata(job: Job) -> dict:
    """Returns the name, and the label by which Kueue admits a job to a queue."""
    labels = {"labels": {"kueue.x-k8s.io/queue-name": job.queue}} if job.queue else {}
    return {"name": job.name, **labels}


def _first_pod(job: Job, replicated_job: str, port: int) -> str:
    """Returns the address of pod 0 of job 0 in the headless service of a JobSet."""
    return f"{job.name}-{replicated_job}-0-0.{job.name}:{port}"


def _container(job: Job, name: str) -> dict:
    """Returns the container of a pod; Kubernetes would expand $(NAME) in its command."""
    requests = {"cpu": str(job.cpus)} if job.cpus else {}
    limits = {"nvidia.com/gpu": str(job.gpus)} if job.gpus else {}
    resources = {"requests": requests, "limits": limits}
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if job.volume:
        mounts.append({"name": "shared", "mountPath": job.volume[1]})
    container = {
        "name": name,
        "image": job.image,
        "command": ["python", *(text.replace("$(", "$$(") for text in job.command)],
        "env": [{"name": name, "value": value} for name, value in job.environment.items()],
        "volumeMounts": mounts,
    }
    if resources := {kind: values for kind, values in resources.items() if values}:
        container["resources"] = resources
    return container


def _jobset_spec(job: Job, container: dict, job_fields: dict) -> dict:
    """Returns the spec of a JobSet: one Job, and what happens when a pod of it fails.

    The rules of the Job decide by exit code and the condition of the pod; JobSet recognises the
    rule that applied by its index in the message. A failure without a rule, such as a lost node,
    exceeds the backoff limit of 0, and JobSet restarts all pods, at most `maxRestarts` times.
    """
    codes = {"containerName": container["name"], "operator": "In", "values": [*PREEMPTED]}
    errors = codes | {"operator": "NotIn", "values": [0, *AGAIN]}
    rules = {
        "preempted": {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        "saved": {"onExitCodes": codes},
        "error": {"onExitCodes": errors},
    }
    action = {"error": "FailJobSet"}  # The same error would only be repeated.
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]  # Of NCCL and data workers.
    if job.volume:
        claim = {"claimName": job.volume[0]}
        volumes.append({"name": "shared", "persistentVolumeClaim": claim})
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            "rules": [
                {
                    "name": name,
                    "action": action.get(name, "RestartJobSetAndIgnoreMaxRestarts"),
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": [f"matching FailJob rule at index {i}$"],
                }
                for i, name in enumerate(rules)
            ],
        },
        "replicatedJobs": [
            {
                "name": "node",
                "replicas": 1,
                "template": {
                    "spec": {
                        **job_fields,
                        "backoffLimit": 0,
                        "podFailurePolicy": {
                            "rules": [{"action": "FailJob", **rule} for rule in rules.values()]
                        },
                        "template": {"spec": pod},
                    }
                },
            }
        ],
    }


def write_skypilot(job: Job, file: str) -> str:
    """Returns a SkyPilot task for a managed job, which finds new nodes after a preemption."""
    resources = {
        **({"accelerators": f"{job.gpu_type}:{job.gpus}"} if job.gpus else {}),
        **({"cpus": f"{job.cpus}+"} if job.cpus else {}),
        **({"image_id": f"docker:{job.image}"} if job.image else {}),
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": AGAIN_SKYPILOT},
    }
    jax = "pip install -q 'jax[cuda13]' && " if job.gpus else ""
    task = {"name": job.name, "num_nodes": job.nodes, "workdir": ".", "resources": resources}
    if job.volume:
        source, path = job.volume
        is_bucket = "://" in source
        mount = {path: {"source": source, "mode": "MOUNT"}} if is_bucket else {path: source}
        task["file_mounts" if is_bucket else "volumes"] = mount
    if not job.image:
        task["setup"] = f"{jax}pip install -q -r requirements.txt"
    return _dump(task | {"envs": job.environment, "run": shlex.join(["python", *job.command])})


def _dump(*documents: dict) -> str:
    texts = (yaml.safe_dump(each, sort_keys=False, width=100) for each in documents)
    return "# Written by `vit_jax.main launch`.\n" + "---\n".join(texts)
