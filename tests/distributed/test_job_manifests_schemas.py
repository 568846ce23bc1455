"""Job manifests against the schemas of the engines, in their own Python packages."""

import pytest
import yaml

from tests.support.job_examples import JOBS, job_file

pytestmark = pytest.mark.slow
KUBERNETES = ("1.29", "1.37")  # Oldest and newest version to check.


def documents(engine: str) -> dict[str, dict]:
    return {each["kind"]: each for each in yaml.safe_load_all(job_file(engine))}


def jobs_of(document: dict) -> list[dict]:
    """Returns the Jobs that JobSet creates from a JobSet, or a TrainingRuntime."""
    spec = document["spec"]
    if document["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": document["metadata"]["name"],
                **each["template"].get("metadata", {}),
            },
            "spec": each["template"]["spec"],
        }
        for each in spec["replicatedJobs"]
    ]


@pytest.mark.parametrize(
    ("engine", "kind", "model"),
    [
        ("jobset", "JobSet", "JobsetV1alpha2JobSet"),
        ("kubeflow", "TrainJob", "TrainerV1alpha1TrainJob"),
        ("kubeflow", "TrainingRuntime", "TrainerV1alpha1TrainingRuntime"),
    ],
)
def test_manifest_has_no_key_that_the_models_of_kubeflow_do_not_know(engine, kind, model):
    reason = "pip install kubeflow-trainer-api"
    models = pytest.importorskip("kubeflow_trainer_api.models", reason=reason)
    document = documents(engine)[kind]
    parsed = getattr(models, model).from_dict(document)
    assert parsed.to_dict() == document  # A key that is not known is dropped.


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(
    ("engine", "kind"), [("jobset", "JobSet"), ("kubeflow", "TrainingRuntime")]
)
def test_jobs_of_a_manifest_follow_the_schema_of_kubernetes(engine, kind, version):
    reason = "pip install kubernetes-validate"
    validate = pytest.importorskip("kubernetes_validate", reason=reason)
    for job in jobs_of(documents(engine)[kind]):
        validate.validate(job, version, strict=True)
        job["spec"]["podFailurePolicy"]["rule"] = []
        with pytest.raises(validate.ValidationError):
            validate.validate(job, version, strict=True)


def test_skypilot_accepts_the_task():
    sky = pytest.importorskip("sky", reason="pip install skypilot")
    task = sky.Task.from_yaml_config(yaml.safe_load(job_file("skypilot")))
    assert task.num_nodes == JOBS["skypilot"].nodes
    (resources,) = task.resources
    assert resources.accelerators == {"H100": 8}
    assert resources.job_recovery["recover_on_exit_codes"] == [6, 134, 135, 138, 139, 143]
    wrong = yaml.safe_load(job_file("skypilot")) | {"num_node": 2}
    with pytest.raises(ValueError, match="num_node"):
        sky.Task.from_yaml_config(wrong)
