"""Training on a Ray cluster of two nodes on this machine: restarts, preemption and errors."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import tempfile
import threading
import time

import pytest

from tests.support.processes import free_address, run_processes
from tests.support.runs import ROOT, final_state, records
from vit_jax import errors
from vit_jax.checkpoints import layout
from vit_jax.training import ray_train

pytestmark = pytest.mark.cluster

# Dropout and mixup: losses depend on random keys and on the order of rows.
CONFIG = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=14, num_layers=1, hidden_size=16, mlp_size=32)
    config.model.update(num_heads=2, dropout=0.1)
    config.data.update(image_size=28, num_classes=3, num_examples=100, mixup=0.3)
    config.optimizer.update(warmup_steps=5, weight_decay=0.1)
    config.mesh.update(data=2, fsdp=2)
    config.update(batch_size=16, steps=40, log_every=1, checkpoint_every=10, eval_every=25)
    return config
"""
STEPS, EVERY = 40, 10  # Of CONFIG: steps, and steps between checkpoints.
SETTINGS = {
    "JAX_NUM_CPU_DEVICES": "2",
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    # A loaded machine may take minutes to start a worker.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Ray cluster of two nodes of one CPU each, to which this process is connected."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'vit-jax[ray]'")
    from ray.cluster_utils import Cluster

    programs = tmp_path_factory.mktemp("programs")
    environment = SETTINGS | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    # The path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as temp, pytest.MonkeyPatch.context() as patch:
        for name, value in (environment | {"RAY_TMPDIR": temp}).items():
            patch.setenv(name, value)
        pathlib.Path(temp, "ray").mkdir()
        head = NODE | {"include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**NODE)
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def unbroken_run(cluster, config_file, tmp_path_factory) -> pathlib.Path:
    """Workdir of an uninterrupted run of two processes that Ray has not started."""
    folder = tmp_path_factory.mktemp("unbroken")
    command = ["-m", "vit_jax.main", f"--config={config_file}", f"--workdir={folder}"]
    command += [f"--coordinator={free_address()}", "--num_processes=2"]
    commands = [[*command, f"--process_id={i}"] for i in range(2)]
    ends = run_processes(commands, dict(os.environ))
    assert [end.code for end in ends] == [0, 0], ends[0].err
    return folder


def assert_equal_to_the_bit(folder: pathlib.Path, reference: pathlib.Path) -> None:
    assert final_state(folder) == final_state(reference)
    assert records(folder) == records(reference)


def pids_of_workers() -> dict[int, bool]:
    """Returns the processes of Ray Train's workers on this machine."""
    pids = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::RayTrainWorker"):
                pids.append(int(path.parent.name))
    return pids


def num_lines(folder: pathlib.Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


@contextlib.contextmanager
def at_step(step: int, folder: pathlib.Path, act):
    """Context in which a thread calls `act` once a step is logged; yields what `act` returns."""
    found, is_over = [], threading.Event()

    def watch():
        while not is_over.wait(0.01):
            if num_lines(folder) >= step:
                found.append(act())
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def recording_callback(path: pathlib.Path):
    """Returns a callback of Ray Train that writes reports and exceptions to a file."""
    import ray.train

    class Recorder(ray.train.UserCallback):
        def write(self, **values):
            with path.open("a") as file:
                file.write(json.dumps(values) + "\n")

        def after_report(self, run_context, metrics, checkpoint):
            self.write(metrics=metrics)

        def after_exception(self, run_context, worker_exceptions):
            self.write(exceptions={i: type(e).__name__ for i, e in worker_exceptions.items()})

    return Recorder()


def own_trainer(config, folder: pathlib.Path, callbacks: list, max_failures: int = 2, **options):
    """Returns a JaxTrainer as a user of Ray Train writes it."""
    import ray.train
    from ray.train.v2.jax import JaxTrainer

    return JaxTrainer(
        ray_train.train_worker,
        train_loop_config={"config": config, "workdir": str(folder)},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            storage_path=str(folder.parent / "ray_results"),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=callbacks,
        ),
        **options,
    )


def lines_of(path: pathlib.Path, key: str) -> list:
    lines = map(json.loads, path.read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize("lost", [0, 1], ids=["first worker", "second worker"])
def test_fit_resumes_after_a_killed_worker_with_the_same_bits(
    lost, cluster, config_file, unbroken_run, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def kill_worker() -> int:
        first = int((folder / ".lock").read_text().split()[1])
        [pid] = [pid for pid in pids_of_workers() if (pid == first) == (lost == 0)]
        os.kill(pid, signal.SIGKILL)
        return layout.list_steps(folder / layout.FOLDER)[-1]

    monkeypatch.chdir(config_file.parent)
    with at_step(EVERY + 4, folder, kill_worker) as saved:
        summary = ray_train.fit("config.py", folder, num_workers=2)
    assert saved == [EVERY]
    assert_equal_to_the_bit(folder, unbroken_run)
    assert summary.workdir == folder
    assert summary.metrics == json.loads((folder / "summary.json").read_text())["metrics"]


def test_worker_of_an_own_trainer_reports_metrics_and_checkpoints(
    cluster, config_file, unbroken_run, tmp_path
):
    folder, log = tmp_path / "run", tmp_path / "log.jsonl"
    result = own_trainer(str(config_file), folder, [recording_callback(log)]).fit()
    assert_equal_to_the_bit(folder, unbroken_run)
    assert result.return_value["step"] == STEPS
    reports = lines_of(log, "metrics")
    assert all(len(of_workers) == 2 for of_workers in reports)
    found: dict[int, dict] = {}
    for first, _ in reports:
        assert first.pop("folder") == str(folder)
        found[first["step"]] = found.get(first["step"], {}) | first
    saved = [values.pop("checkpoint", None) for values in found.values()]
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(found.values()) == written
    # A step is saved after it is reported; the evaluation of the last step comes after both.
    steps = [None] * EVERY + [*range(EVERY, STEPS)]
    steps = [step and step // EVERY * EVERY for step in steps]
    steps[-1] = STEPS
    assert saved == [step and str(folder / layout.FOLDER / str(step)) for step in steps]
    copies = [*(tmp_path / "ray_results").rglob("*")]
    assert not [path for path in copies if path.name in ("manifest", "state")]


def test_runtime_that_ray_has_initialised_is_adopted(cluster, config_file, unbroken_run, tmp_path):
    from ray.train.v2.jax import JaxConfig

    # With JAX_PLATFORMS=cpu, Ray initialises CPUs as it does GPUs.
    jax_config = JaxConfig(use_gpu=True)
    own_trainer(str(config_file), tmp_path / "run", [], 0, jax_config=jax_config).fit()
    assert_equal_to_the_bit(tmp_path / "run", unbroken_run)


def test_preempted_node_saves_the_run_which_ray_restarts_elsewhere(
    cluster, config_file, unbroken_run, tmp_path
):
    from ray._private import state
    from ray.core.generated import autoscaler_pb2

    folder, log = tmp_path / "run", tmp_path / "log.jsonl"
    cluster.add_node(**NODE)

    def preempt() -> int:
        free = state.available_resources_per_node()
        ids = [node.node_id for node in cluster.worker_nodes]
        busy = next(each for each in ids if not free[each].get("CPU"))
        reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION
        deadline = int(time.time() * 1000) + 10_000  # The rest of the run takes longer.
        cluster.head_node.get_gcs_client().drain_node(busy, reason, "test", deadline)
        return num_lines(folder)

    callbacks = [recording_callback(log), *ray_train.callbacks()]
    trainer = own_trainer(str(config_file), folder, callbacks, max_failures=0)
    with at_step(EVERY + 2, folder, preempt) as preempted_at:
        trainer.fit()
    assert_equal_to_the_bit(folder, unbroken_run)
    reported = [first["step"] for first, _ in lines_of(log, "metrics") if "val/n" not in first]
    [again] = [b for a, b in itertools.pairwise(reported) if b < a]
    assert again - 1 > preempted_at[0]  # The step that was saved for the preemption.
    assert (again - 1) % EVERY


def test_mistake_in_the_config_is_found_before_workers_start(cluster, config_file, tmp_path):
    with pytest.raises(errors.ConfigError, match="stepz"):
        ray_train.fit(str(config_file), tmp_path / "run", overrides={"stepz": 5})
    assert not (tmp_path / "run").exists()


def test_error_of_the_data_is_one_error_without_a_restart(cluster, config_file, tmp_path):
    overrides = {"data.source": "folder", "data.dir": str(tmp_path / "missing")}
    with pytest.raises(errors.DataError, match="missing") as caught:
        ray_train.fit(str(config_file), tmp_path / "run", num_workers=2, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_callbacks_end_a_run_after_the_first_error_of_the_user(cluster, config_file, tmp_path):
    import ray.train

    log = tmp_path / "log.jsonl"
    callbacks = [recording_callback(log), *ray_train.callbacks()]
    trainer = own_trainer(str(config_file), tmp_path / "run", callbacks)
    trainer.train_loop_config["overrides"] = {"batch_size": 15}
    with pytest.raises(ray.train.TrainingFailedError) as caught:
        trainer.fit()
    assert isinstance(ray_train.cause_of(caught.value, tmp_path), errors.ConfigError)
    assert len(lines_of(log, "exceptions")) == 1


def test_rejected_scaling_is_a_config_error(cluster, config_file, tmp_path):
    with pytest.raises(errors.ConfigError, match="Ray Train rejects"):
        ray_train.fit(str(config_file), tmp_path / "run", workers=2)


def test_example_trains_on_the_cluster(cluster, tmp_path):
    import runpy

    example = runpy.run_path(str(ROOT / "examples" / "ray_cluster.py"))
    summary = example["main"](workdir=tmp_path / "run", num_workers=2, steps=4)
    assert summary["step"] == 4


def test_no_worker_is_left(cluster):
    deadline = time.monotonic() + 20
    while pids_of_workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pids_of_workers() == []
