"""Job scripts for SLURM and Open MPI, from the templates `slurm.sh` and `mpi.sh`, and for Ray."""

import pathlib
import shlex
import string

from vit_jax.distributed.job import AGAIN, Job

TEMPLATES = pathlib.Path(__file__).parent
RAY = '''"""Written by `vit_jax.main launch`. To submit it: ~{submit}"""

import sys

import ray

from vit_jax.errors import VitJaxError
from vit_jax.training import ray_train

ray.init()
try:
    summary = ray_train.fit(
        ~{arguments},
    )
except VitJaxError as error:
    print(f"vit_jax: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
print(f"done: {summary}")
'''


class ShellTemplate(string.Template):
    """Template with fields such as ~{name}: `$` and `@` have a meaning in a shell script."""

    delimiter = "~"


def write_slurm(job: Job, file: str) -> str:
    """Returns a batch script of SLURM, which requeues its job until the run is done.

    SLURM requeues the job after a preemption and the loss of a node. The script requeues it before
    its time limit, at which SLURM sends SIGTERM, and after a failure of a process.
    """
    gpus = f"{job.gpu_type}:{job.gpus}" if job.gpu_type else str(job.gpus)
    options = [
        f"--cpus-per-task={job.cpus}" if job.cpus else "--exclusive",
        *([f"--gpus-per-node={gpus}"] if job.gpus else []),
        *([f"--time={job.time}"] if job.time else []),
        *([f"--partition={shlex.quote(job.queue)}"] if job.queue else []),
    ]
    # Processes end each other, with the exit code of the first error; SLURM would end them with
    # SIGTERM. From version 22.05 on, srun does not take --cpus-per-task from sbatch.
    cpus = f"--cpus-per-task={job.cpus}" if job.cpus else "--cpu-bind=none"
    return _fill(
        "slurm.sh",
        job,
        file,
        nodes=job.nodes,
        options="\n".join(f"#SBATCH {option}" for option in options),
        grace=job.grace,
        srun=f"--kill-on-bad-exit=0 {cpus}",
    )


def write_mpi(job: Job, file: str) -> str:
    """Returns a script for Open MPI, which starts `mpirun` again until the run is done."""
    exported = [flag for name in job.environment for flag in ("-x", name)]
    mpirun = [
        *("-np", str(job.nodes), "--map-by", "node", "--bind-to", "none"),
        *("--mca", "odls_base_sigkill_timeout", str(job.grace)),
        *("--mca", "odls_base_signal_direct_children_only", "1"),  # Not to their data workers.
        *exported,
    ]
    return _fill("mpi.sh", job, file, mpirun=" ".join(mpirun) + " ${PYTHONPATH:+-x PYTHONPATH}")


def write_ray(job: Job, file: str) -> str:
    """Returns a Python program that trains with Ray Train, which starts lost workers again."""
    resources = {name: n for name, n in (("CPU", job.cpus), ("GPU", job.gpus)) if n}
    arguments = {
        "num_workers": job.nodes,
        "max_failures": job.max_restarts,
        "overrides": dict(job.overrides),
        "use_gpu": bool(job.gpus),
        **({"resources_per_worker": resources} if resources else {}),
        **({"accelerator_type": job.gpu_type} if job.gpu_type else {}),
    }
    texts = [repr(job.config), repr(job.workdir)]
    texts += [f"{name}={value!r}" for name, value in arguments.items()]
    submit = f"ray job submit --working-dir=. -- python {file}"
    return ShellTemplate(RAY).substitute(submit=submit, arguments=",\n        ".join(texts))


def _fill(template: str, job: Job, file: str, **values) -> str:
    """Returns a template with its own values and those that both templates have."""
    exports = (f"export {name}={shlex.quote(v)}" for name, v in job.environment.items())
    inspect = [job.python, "-m", "vit_jax.main", "inspect", "--steps", job.workdir]
    common = {
        "name": job.name,
        "file": shlex.quote(file),
        "folder": shlex.quote(job.folder),
        "exports": "\n".join(exports),
        "train": shlex.join([job.python, *job.command]),
        "again": "|".join(map(str, AGAIN)),
        "inspect": shlex.join(inspect),
        "max_restarts": job.max_restarts,
    }
    return _read(template).substitute(
        common | values, functions=_read("restarts.sh").substitute(common).rstrip("\n")
    )


def _read(template: str) -> ShellTemplate:
    return ShellTemplate((TEMPLATES / template).read_text(encoding="utf-8"))
