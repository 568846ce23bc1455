"""Training on a Ray cluster, as the train function of Ray Train's JaxTrainer.

`fit` trains on a cluster and lets Ray restart lost workers. `train_worker` and `callbacks` are its
parts for a JaxTrainer of your own.

A JaxTrainer initialises JAX's distributed runtime on TPUs and GPUs before it calls the train
function; that runtime is adopted. On CPUs it initialises nothing, so `train_worker` does, from
rank and size of the worker and an address that the first worker chooses. `JaxConfig(use_gpu=True)`
with JAX_PLATFORMS=cpu would initialise CPUs, too, but by accident: it is not documented, and the
end of each attempt then waits up to 30 s for lost processes.

Sources: `ray/train/v2/jax/config.py` of Ray 2.60; https://docs.ray.io/en/latest/train/train.html.
"""

import contextlib
import os
import pathlib
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vit_jax import config as config_lib
from vit_jax.atomic_io import FULL
from vit_jax.checkpoints import layout
from vit_jax.checkpoints import workdir as workdir_lib
from vit_jax.config.fields import expand_home
from vit_jax.data.object_store import is_url
from vit_jax.errors import ConfigError, HostError, InUseError, VitJaxError, one_line

if TYPE_CHECKING:
    from vit_jax.training.run import Summary

STORAGE = ".ray"  # Folder in the workdir for files of Ray Train.
USER_ERRORS = (2, 3, 4, 5)  # Exit codes of errors that a restart would repeat.


def fit(
    config,
    workdir: str | pathlib.Path,
    *,
    num_workers: int = 1,
    max_failures: int = 3,
    overrides: Mapping[str, object] | None = None,
    **scaling,
) -> "Summary":
    """Trains on a Ray cluster: one process per worker, all of them one run.

    Call `ray.init` before, with the address of the cluster. A worker or node that is lost makes Ray
    restart all workers, which resume from the last checkpoint of the workdir. Errors of the config,
    the data, the checkpoints, and a loss that is not finite end the run at once.

    Args:
      config: as for `vit_jax.train`; files and relative paths are those of this process.
      workdir: folder of the run, on a file system that all nodes share.
      num_workers: number of processes; on TPUs that of hosts.
      max_failures: restarts after a lost worker; -1 for any number. Restarts after the preemption
        of a node do not count.
      overrides: dotted field -> value.
      **scaling: other arguments of `ray.train.ScalingConfig`, such as use_gpu=True,
        resources_per_worker={"GPU": 4}, or use_tpu=True with topology and accelerator_type.

    Returns the contents of `summary.json`. Raises the `vit_jax.errors.VitJaxError` of a worker;
    ConfigError if Ray is missing or rejects the arguments, HostError after the last restart.
    """
    ray_train, jax_trainer = _import_ray()
    stages = config_lib.resolve(config, overrides)
    if is_url(workdir):
        raise ConfigError(
            f"workdir {workdir} is in a bucket; under Ray Train, give a folder on a file system "
            "that all nodes share."
        )
    folder = pathlib.Path(expand_home(str(workdir))).absolute()
    workdir_lib.require_utf8(folder)
    on_accelerator = scaling.get("use_gpu") or scaling.get("use_tpu")
    env_vars = {} if on_accelerator else {"JAX_PLATFORMS": "cpu"}
    try:
        trainer = jax_trainer(
            train_worker,
            train_loop_config={"config": stages, "workdir": str(folder), "cwd": os.getcwd()},
            scaling_config=ray_train.ScalingConfig(num_workers=num_workers, **scaling),
            run_config=ray_train.RunConfig(
                name=STORAGE,
                storage_path=str(folder),
                failure_config=ray_train.FailureConfig(max_failures=max_failures),
                callbacks=callbacks(),
                worker_runtime_env={"env_vars": env_vars},
            ),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Ray Train rejects the arguments: {one_line(error)}") from error
    try:
        result = trainer.fit()
    except ray_train.TrainingFailedError as error:
        raise cause_of(error, folder) from error
    from vit_jax.training.run import Summary

    return Summary(result.return_value, folder)


def _import_ray():
    """Returns the module `ray.train` and the class JaxTrainer; imports no JAX."""
    try:
        import ray.train
        from ray.train.v2.jax import JaxTrainer
    except ImportError as error:
        raise ConfigError(
            f"Ray Train cannot be imported ({one_line(error)}); pip install 'vit-jax[ray]'."
        ) from error
    return ray.train, JaxTrainer


def train_worker(options: dict) -> dict:
    """Trains in one worker; the `train_loop_per_worker` of a JaxTrainer.

    Reports the metrics of each logged step and evaluation with `ray.train.report`, with the step,
    the folder of the run, and the path of its last checkpoint as `checkpoint`. Ray gets no copy of
    the checkpoint. When Ray announces that a node will be preempted, the next step is saved.

    Args:
      options: the `train_loop_config`: arguments of `vit_jax.train` by name. Ray changes the
        working directory, so paths must be absolute, unless `cwd` is the directory to change to.

    Returns the contents of `summary.json`.
    """
    import jax

    from vit_jax.training.run import train

    options = dict(options)
    with contextlib.suppress(OSError):  # Another host need not have this directory.
        os.chdir(options.pop("cwd", "."))
    is_connected_by_ray = jax.distributed.is_initialized()
    if not is_connected_by_ray:
        _connect()
    summary = train(**options, on_log=Reporter())
    if not is_connected_by_ray:  # Ray ends the processes one by one, which JAX takes for failures.
        jax.distributed.shutdown()
    return dict(summary)


def _connect() -> None:
    """Connects the workers of a JaxTrainer that has not initialised JAX's runtime.

    All workers must call this.
    """
    import ray.train
    from ray.train import collective

    from vit_jax.distributed import multihost

    context = ray.train.get_context()
    address = collective.broadcast_from_rank_zero(_free_address())
    multihost.connect(address, context.get_world_size(), context.get_world_rank())


def _free_address() -> str:
    """Returns the address of this node with a port at which nothing listens."""
    import ray.util

    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    host = ray.util.get_node_ip_address()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Reporter:
    """The `on_log` of `vit_jax.train` in a Ray worker: reports metrics, and saves preempted runs.

    `ray.train.report` waits until Ray has collected the report before: Ray looks for one every 2 s,
    or every RAY_TRAIN_HEALTH_CHECK_INTERVAL_S seconds.
    """

    def __init__(self):
        self._saved_before: set[str] = set()  # Nodes whose preemption was answered.

    def __call__(self, folder: pathlib.Path, step: int, values: dict) -> bool:
        """Reports metrics of a step; returns True if a node will be preempted."""
        import ray.train

        metrics = {**values, "step": step, "folder": str(folder)}
        if steps := layout.list_steps(folder / layout.FOLDER):
            metrics["checkpoint"] = str(folder / layout.FOLDER / str(steps[-1]))
        ray.train.report(metrics)
        info = ray.train.get_preemption_info()  # The same in all workers: it is a broadcast.
        nodes = set(info.preempted_node_ids) if info else set()
        is_new = not nodes <= self._saved_before
        self._saved_before |= nodes
        return is_new


def callbacks() -> list:
    """Returns the callbacks of `ray.train.RunConfig` that end a run after a user's error.

    Without them, Ray restarts the workers after every exception, as often as `max_failures` allows.
    """
    ray_train, _ = _import_ray()

    class EndAfterUserError(ray_train.UserCallback):
        """Raises the user's error of a worker, which Ray does not answer with a restart."""

        def after_exception(self, run_context, worker_exceptions):
            for error in worker_exceptions.values():
                if is_user_error(error):
                    raise error

    return [EndAfterUserError()]


def is_user_error(error: BaseException) -> bool:
    """Returns True for an error that a restarted run would repeat.

    A workdir in use is none: a worker of the attempt before may take a moment to end.
    """
    if isinstance(error, OSError):
        return error.errno in FULL
    is_ours = isinstance(error, VitJaxError) and not isinstance(error, InUseError)
    return is_ours and error.exit_code in USER_ERRORS


def cause_of(error: Exception, folder: pathlib.Path) -> Exception:
    """Returns the error that made `JaxTrainer.fit` fail: that of a worker, or a HostError."""
    causes = [getattr(error, "controller_failure", error)]
    causes += getattr(error, "worker_failures", {}).values()
    for cause in causes:
        if isinstance(cause, VitJaxError) or is_user_error(cause):
            return cause
    return HostError(
        f"Ray cannot continue the run in {folder}: {one_line(causes[-1])} The same call resumes it."
    )
