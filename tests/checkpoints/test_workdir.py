"""A run's files are whole or absent, and one process alone writes them."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.workdir import Lock, read_json, refuse_other_run, write_json
from vit_jax.errors import ConfigError

HOLD = """
import sys, time, pathlib
from vit_jax.checkpoints.workdir import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "c": {"d": "é"}})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None], "c": {"d": "é"}}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        write_json(path, {"step": 2, "bad": object()})
    assert read_json(path) == {"step": 1}


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "a.json"
    values = {f"name {i}": i for i in range(3000)}
    write_json(path, values)
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(read_json(path) == values)  # Raises for half a file.

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(60):
        write_json(path, values)
    done.set()
    reader.join()
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.parametrize("text", ['{"a": 1', "[1]", "", b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json(path)


def test_a_missing_file_is_none_and_a_missing_config_is_told_of(tmp_path):
    assert read_json(tmp_path / "a.json") is None
    with pytest.raises(ConfigError, match=r"no config\.json in it.*give --config"):
        workdir.read_config(tmp_path)


def run_config(**fields):
    config = config_lib.base_config()
    config.steps = 10
    for key, text in fields.items():
        config_lib.override(config, key.replace("__", "."), text)
    return config_lib.to_dict(config_lib.check(config))


def test_the_config_of_a_run_is_read_back(tmp_path):
    values = run_config(optimizer__lr="0.25", data__crop_area="(0.5, 1)")
    write_json(tmp_path / workdir.CONFIG, values)
    stages = workdir.read_config(tmp_path)
    assert stages[""].optimizer.lr == 0.25
    assert stages[""].data.crop_area == (0.5, 1.0)
    assert config_lib.to_dict(stages) == values


def test_a_config_of_another_version_names_file_and_field(tmp_path):
    values = run_config()
    values["optimizer"]["lrate"] = 1
    write_json(tmp_path / workdir.CONFIG, values)
    with pytest.raises(ConfigError, match=r"config\.json: config\.optimizer has no field 'lrate'"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("wrong", [{"batch_size": "many"}, {"model": 3}, {"stages": ["a"]}])
def test_a_config_edited_by_hand_is_refused_by_name(tmp_path, wrong):
    write_json(tmp_path / workdir.CONFIG, run_config() | wrong)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        workdir.read_config(tmp_path)


def test_the_same_run_may_go_on(tmp_path):
    refuse_other_run(tmp_path, run_config())  # Nothing there yet.
    write_json(tmp_path / workdir.CONFIG, run_config())
    refuse_other_run(tmp_path, run_config())


def test_another_run_is_refused_by_the_names_of_its_fields(tmp_path):
    write_json(tmp_path / workdir.CONFIG, run_config())
    other = run_config(seed="1", optimizer__lr="0.5", data__crop_area="(0.5, 1)", log_every="7")
    with pytest.raises(ConfigError) as caught:
        refuse_other_run(tmp_path, other)
    assert "differs in data.crop_area, optimizer.lr, seed. Use" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert read_json(tmp_path / workdir.CONFIG) == json.loads(json.dumps(run_config()))


FREE = {
    "mesh.data": "2",
    "mesh.fsdp": "4",
    "log_every": "7",
    "checkpoint_every": "8",
    "data.workers": "3",
}


@pytest.mark.parametrize("field", FREE)
def test_what_does_not_change_a_run_may_change(tmp_path, field):
    write_json(tmp_path / workdir.CONFIG, run_config())
    other = run_config(**{field: FREE[field]})
    assert other != run_config()
    refuse_other_run(tmp_path, other)


def test_a_free_field_is_free_within_a_stage_and_another_is_not(tmp_path):
    old = {"stages": {"a": run_config(), "b": run_config()}}
    write_json(tmp_path / workdir.CONFIG, old)
    refuse_other_run(tmp_path, {"stages": {"a": run_config(log_every="7"), "b": run_config()}})
    with pytest.raises(ConfigError, match=r"differs in stages\.b\.batch_size\. "):
        refuse_other_run(tmp_path, {"stages": {"a": run_config(), "b": run_config(batch_size="8")}})
    with pytest.raises(ConfigError, match=r"differs in stages\.b\. "):
        refuse_other_run(tmp_path, {"stages": {"a": run_config()}})


def test_a_lock_is_exclusive_until_its_context_ends(tmp_path):
    folder = tmp_path / "new"
    with Lock(folder), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on"):
        Lock(folder).__enter__()
    with Lock(folder):
        pass


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Lock(tmp_path):
        raise ZeroDivisionError
    with Lock(tmp_path):
        pass


def test_a_live_process_keeps_its_lock_and_a_killed_one_loses_it(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # The refused one leaves the holder's name as it was.
            with pytest.raises(ConfigError) as caught, Lock(tmp_path):
                pass
            assert f"workdir {tmp_path} is in use by process {holder.pid} on " in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        with Lock(tmp_path):
            assert (tmp_path / workdir.LOCK).read_text().startswith(f"process {os.getpid()} on ")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_versions_name_what_numbers_depend_on():
    import jax

    versions = workdir.versions()
    assert versions["jax"] == jax.__version__
    assert versions["python"] == sys.version.split()[0]
    assert {"flax", "optax", "grain", "numpy", "pillow"} <= set(versions)


def test_a_run_that_began_before_a_field_existed_goes_on(tmp_path):
    old = run_config()
    del old["optimizer"]["layer_decay"]
    write_json(tmp_path / "config.json", old)
    refuse_other_run(tmp_path, run_config())
