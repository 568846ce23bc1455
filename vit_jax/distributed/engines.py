"""Engines that start the processes of a job: the table ENGINES."""

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable

from vit_jax.data.object_store import is_url
from vit_jax.distributed import job_manifests, job_scripts
from vit_jax.distributed.job import Job, seconds_of
from vit_jax.errors import ConfigError

OPTIONAL = ("gpus", "cpus", "time", "grace", "max_restarts", "image", "volume", "queue")


@dataclasses.dataclass(frozen=True)
class Engine:
    """Job file and submit command of an engine.

    Attributes:
      title: name of the engine in messages.
      suffix: suffix of job files.
      write: returns the contents of a job file, from the job and the path of the file.
      submit: command that submits the file, which is its last argument.
      options: fields of Job among OPTIONAL that the engine uses.
      shares_files: True if the nodes have the files and the Python of this machine.
      needs_image: True if the processes run in containers of `image`.
    """

    title: str
    suffix: str
    write: Callable[[Job, str], str]
    submit: tuple[str, ...]
    options: tuple[str, ...]
    shares_files: bool = False
    needs_image: bool = False


KUBERNETES = ("gpus", "cpus", "grace", "max_restarts", "image", "volume", "queue")
ENGINES = {
    "slurm": Engine(
        "SLURM",
        ".sbatch",
        job_scripts.write_slurm,
        ("sbatch",),
        ("gpus", "cpus", "time", "grace", "max_restarts", "queue"),
        shares_files=True,
    ),
    "mpi": Engine(
        "Open MPI",
        ".sh",
        job_scripts.write_mpi,
        ("bash",),
        ("gpus", "grace", "max_restarts"),
        shares_files=True,
    ),
    "kubeflow": Engine(
        "Kubeflow Trainer",
        ".yaml",
        job_manifests.write_kubeflow,
        ("kubectl", "apply", "-f"),
        KUBERNETES,
        needs_image=True,
    ),
    "jobset": Engine(
        "JobSet",
        ".yaml",
        job_manifests.write_jobset,
        ("kubectl", "apply", "-f"),
        KUBERNETES,
        needs_image=True,
    ),
    "ray": Engine(
        "Ray Train",
        ".py",
        job_scripts.write_ray,
        ("ray", "job", "submit", "--working-dir=.", "--", "python"),
        ("gpus", "cpus", "max_restarts"),
    ),
    "skypilot": Engine(
        "SkyPilot",
        ".yaml",
        job_manifests.write_skypilot,
        ("sky", "jobs", "launch", "--yes"),
        ("gpus", "cpus", "image", "volume"),
    ),
}


def check_job(name: str, job: Job) -> None:
    """Raises ConfigError for a job that an engine cannot run."""
    engine, defaults = ENGINES[name], {each.name: each.default for each in dataclasses.fields(Job)}
    for option in OPTIONAL:
        if option not in engine.options and getattr(job, option) != defaults[option]:
            flag = {"gpus": "gpus_per_node", "cpus": "cpus_per_node"}.get(option, option)
            users = [other for other, each in ENGINES.items() if option in each.options]
            raise ConfigError(
                f"--{flag} has no effect with --engine={name}; leave it out, or use the engine "
                f"{' or '.join(users)}."
            )
    if engine.needs_image and not job.image:
        raise ConfigError(
            f"--engine={name} needs --image=IMAGE, a container image whose working folder has the "
            "config file and whose Python has this package."
        )
    if name == "ray" and job.config is None:
        raise ConfigError("--engine=ray needs --config=FILE.")
    if name == "ray" and is_url(job.workdir):
        raise ConfigError(
            f"--workdir={job.workdir} is in a bucket; --engine=ray needs a folder on a file system "
            "that all nodes share."
        )
    if job.time and (seconds_of(job.time) or 0) <= job.grace:
        raise ConfigError(
            f"--time={job.time} is not longer than --grace={job.grace} seconds; a run would be "
            "asked to end when it starts."
        )
    if name == "skypilot" and job.gpus and not job.gpu_type:
        raise ConfigError(
            f"--gpus_per_node={job.gpus}: SkyPilot needs the type of the GPUs, as in "
            f"--gpus_per_node=H100:{job.gpus} (`sky show-gpus` lists them)."
        )
    if engine.needs_image and job.gpu_type:
        raise ConfigError(
            f"--gpus_per_node={job.gpu_type}:{job.gpus} has a type, which Kubernetes selects by "
            f"labels of nodes; give --gpus_per_node={job.gpus}, and add a nodeSelector to the file."
        )
    if "volume" in engine.options and not is_url(job.workdir):
        _check_volume(name, job)


def _check_volume(name: str, job: Job) -> None:
    """Raises ConfigError unless the workdir outlives the nodes or pods, which are replaced."""
    path = job.volume[1].rstrip("/") if job.volume else None
    if path is None or not f"{job.workdir}/".startswith(f"{path}/"):
        source = "a bucket such as gs://bucket" if name == "skypilot" else "a volume claim"
        raise ConfigError(
            f"--workdir={job.workdir} is lost when a node of {ENGINES[name].title} is replaced; "
            f"use a URL such as gs://bucket/run, or a folder in --volume=SOURCE:PATH, where SOURCE "
            f"is {source}{f'; PATH is {path} now' if path else ''}."
        )


def submit_command(name: str, file: str) -> list[str]:
    """Returns the command that submits a job file."""
    return [*ENGINES[name].submit, file]


def submit(name: str, file: str) -> None:
    """Submits a job file with the tool of the engine; for Open MPI, this process becomes the job.

    Raises:
      ConfigError: the tool is not installed, or it reports an error.
    """
    command = submit_command(name, file)
    tool = "mpirun" if name == "mpi" else command[0]
    if shutil.which(tool) is None:
        raise ConfigError(
            f"--submit: {tool} is not installed on this machine. {file} is written; where {tool} "
            f"is installed, run {shlex.join(command)}"
        )
    if name == "mpi":  # The script handles Ctrl-C and SIGTERM, which a parent would not pass on.
        os.execvp(command[0], command)
    code = subprocess.run(command).returncode
    if code:
        raise ConfigError(f"--submit: {shlex.join(command)} failed with exit code {code}.")
