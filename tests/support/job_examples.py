"""One job for each engine, whose files are stored in `tests/golden/jobs`.

python -m tests.support.job_examples writes the files again.
"""

import pathlib

from vit_jax.distributed.engines import ENGINES
from vit_jax.distributed.job import Job

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "jobs"
L16 = {
    "name": "l16",
    "nodes": 4,
    "config": "configs/pretrain.py:data=imagenet21k,model=vit_l16,dir=/shared/imagenet21k",
    "overrides": {"mesh.fsdp": "8", "data.augment": "inception_crop|flip"},
    "gpus": 8,
}
SHARED = {"workdir": "/shared/runs/l16", "folder": "/home/me/vit jax", "python": "/opt/vit/python"}
PODS = {"workdir": "/shared/runs/l16", "volume": ("claim", "/shared"), "image": "registry/vit:1"}
JOBS = {
    "slurm": Job(**L16, **SHARED, cpus=64, time="24:00:00", queue="gpu", gpu_type="a100"),
    "mpi": Job(**L16, **SHARED),
    "kubeflow": Job(**L16, **PODS, cpus=64, queue="team"),
    "jobset": Job(**L16, **PODS, cpus=64, queue="team"),
    "ray": Job(**L16, workdir="/shared/runs/l16", cpus=64, gpu_type="H100"),
    "skypilot": Job(**L16, workdir="gs://bucket/runs/l16", gpu_type="H100", cpus=64),
}


def job_file(engine: str) -> str:
    return ENGINES[engine].write(JOBS[engine], f"l16{ENGINES[engine].suffix}")


def golden_file(engine: str) -> pathlib.Path:
    return GOLDEN / f"{engine}.txt"


if __name__ == "__main__":
    for name in JOBS:
        golden_file(name).write_text(job_file(name), encoding="utf-8")
