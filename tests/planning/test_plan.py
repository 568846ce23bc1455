"""Tests of the verb `plan` and of `plan_run`."""

import dataclasses
import json
import re

import pytest

from tests.support.scenarios import make_config
from vit_jax import main
from vit_jax.config.schema import Data, Mesh
from vit_jax.data import dataset_info
from vit_jax.errors import ConfigError
from vit_jax.models.flops import training_flops
from vit_jax.models.registry import create_model
from vit_jax.planning.plan import infer_data_size


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """Config file of a tiny model on fake data."""
    file = tmp_path_factory.mktemp("plan") / "tiny.py"
    file.write_text(
        '"""Tiny."""\nfrom vit_jax.config import base_config\n\n\ndef get_config(arg=None):\n'
        "    config = base_config()\n"
        "    config.model.update(name='vit_ti16', patch=8, num_layers=2, hidden_size=32)\n"
        "    config.model.update(mlp_size=64, num_heads=2)\n"
        "    config.data.update(image_size=32, num_examples=640)\n"
        "    config.update(batch_size=64, epochs=2.0)\n"
        "    return config\n"
    )
    return file


def run_plan(capsys, *arguments) -> str:
    assert main.run(["plan", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_plan_json_has_steps_flops_and_time(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=4", "--mesh=fsdp:2", "--accelerator=v4")
    found = json.loads(run_plan(capsys, *flags, "--mfu=0.5", "--json"))
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["steps"] == 20  # 2 x 640 / 64.
    assert found["epochs"] == 2
    model = create_model("vit_ti16", num_classes=10, image_size=32, patch=8, num_layers=2,
                         hidden_size=32, mlp_size=64, num_heads=2)  # fmt: skip
    per_step = training_flops(model, 64)
    assert found["flops"]["per_step"] == per_step
    seconds = 20 * per_step / (4 * 275e12 * 0.5)
    sending = found["communication"]["seconds"]
    assert found["time"]["hours"] == pytest.approx(max(seconds, 20 * sending) / 3600)
    assert found["time"]["device_days"] == pytest.approx(found["time"]["hours"] * 4 / 24)
    assert found["data"]["from"] == "read from the data"


def test_plan_text_has_memory_and_result(config_file, capsys):
    text = run_plan(capsys, f"--config={config_file}", "--devices=8")
    for label in ("peak memory per device", "activations", "largest batch", "exaFLOPs"):
        assert label in text
    assert re.search(r"result +fits, \d+ % free", text)
    assert "8 H100 SXM, mesh data:8,fsdp:1,tensor:1" in text


def test_plan_with_memory_gb_fits_the_run_into_this_memory(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=1", "--accelerator=v4", "--largest_batch")
    found = json.loads(run_plan(capsys, *flags, "--memory_gb=0.5", "--json"))
    assert found["memory"]["of"] == 500_000_000  # A TPU: all of it.
    assert found["memory"]["peak"] <= 500_000_000
    assert found["largest_batch"] < json.loads(run_plan(capsys, *flags, "--json"))["largest_batch"]
    text = run_plan(capsys, f"--config={config_file}", "--devices=1", "--memory_gb=16")
    assert "of 12.00 GB, 75 % of 16.00 GB" in text  # JAX takes three quarters of a GPU.
    assert "device(s) of 16 GB with the speed of H100 SXM, mesh" in text


def test_plan_counts_recomputation_as_hardware_flops_only(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=1", "--json", "--config.model.remat=full")
    found = json.loads(run_plan(capsys, *flags))["flops"]
    T, D, M, L = 17, 32, 64, 2
    recomputed = 2 * 64 * L * (T * (4 * D * D + 2 * D * M) + 2 * T * T * D)
    assert found["of_hardware_per_step"] - found["per_step"] == recomputed


def test_plan_with_compile_has_the_memory_of_xla(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=8", "--mesh=fsdp:8", "--compile", "--json")
    found = json.loads(run_plan(capsys, *flags, "--config.batch_size=4096"))["compiled"]
    assert abs(found["difference_percent"]) < 10
    assert set(found["bytes_sent"]) >= {"all-gather", "all-reduce + slice"}


def test_plan_with_layout_lists_parameters_and_those_not_sharded_by_fsdp(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=5", "--mesh=fsdp:5", "--config.batch_size=65")
    wide = ("--config.model.hidden_size=512", "--config.model.mlp_size=1024")  # 5 divides neither.
    text = run_plan(capsys, *flags, *wide, "--layout")
    assert re.search(r"not sharded by fsdp +Transformer/encoderblock_\*/MlpBlock_0/Dense_0", text)
    assert "| Transformer/encoderblock_*/MlpBlock_0/Dense_0/kernel " in text
    assert "| 512 x 1024 " in text
    assert "not sharded by fsdp" not in run_plan(capsys, *flags, "--config.model.hidden_size=40")


def test_plan_rejects_a_batch_that_cannot_be_split_evenly(config_file, capsys):
    with pytest.raises(ConfigError, match="batch_size 64 is not divisible by 3 devices"):
        run_plan(capsys, f"--config={config_file}", "--devices=3")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accelerator=h101"], "Did you mean h100"),
        (["--mfu=40"], "not a number above 0"),
        (["--memory_gb=0"], "'0' is not a positive number"),
        (["--memory_gb=16GB"], "'16GB' is not a positive number"),
        (["--devices=0"], "not a whole number of at least 1"),
        (["--devices=4", "--mesh=fsdp:3"], "does not fit 4 devices"),
        (["--devices=128", "--compile"], "--compile supports at most 64 devices, not 128"),
    ],
)
def test_plan_rejects_invalid_flags_in_one_line(config_file, capsys, flags, message):
    with pytest.raises(ConfigError, match=message) as error:
        run_plan(capsys, f"--config={config_file}", *flags)
    assert "\n" not in str(error.value)


def test_infer_data_size_uses_arguments_known_names_and_defaults(capsys):
    data = Data(source="prepared", dir="/nowhere", image_size=32)
    found = infer_data_size(make_config(data=data), "tiny.py", None, None)
    assert found == {
        "num_classes": 1000,
        "num_examples": 1_281_167,
        "from": "assumed as in ImageNet: the data cannot be read",
    }
    found = infer_data_size(make_config(data=data), "tiny.py", 7, 70)
    assert found == {"num_classes": 7, "num_examples": 70, "from": "given"}
    found = infer_data_size(make_config(data=data), "f.py:data=jft,smoke", None, None)
    assert (found["num_classes"], found["num_examples"]) == (18_291, 303_000_000)
    part = dataclasses.replace(data, split="train[:99%]", dir="/data/imagenet21k/", fraction=0.5)
    found = infer_data_size(make_config(data=part), "f.py", None, None)
    assert found["num_examples"] == round(14_197_122 * 0.99 * 0.5)


def test_share_of_split_slices():
    splits = ("train", "train[:98%]", "train[98%:]", "train[10%:30%]", "train[:800]")
    assert [round(dataset_info.slice_size(s), 4) for s in splits] == [1.0, 0.98, 0.02, 0.2, 800]


def test_plan_takes_the_number_of_devices_from_the_mesh(config_file, capsys):
    found = json.loads(
        run_plan(capsys, f"--config={config_file}", "--mesh=data:2,fsdp:2", "--json")
    )
    assert found["devices"] == 4
    assert Mesh(**found["mesh"]) == Mesh(data=2, fsdp=2, tensor=1)


def test_plan_with_mtbf_has_the_expected_goodput_and_the_best_interval(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=4", "--accelerator=v4", "--mtbf=8h/device")
    times = ("--checkpoint_time=30s", "--restart_time=2m")
    found = json.loads(run_plan(capsys, *flags, *times, "--json"))["goodput"]
    assert (found["mtbf_seconds"], found["checkpoint_seconds"]) == (7200, 30)
    assert found["restart_seconds"] == 120
    assert found["config"]["checkpoint_every"] == found["daly"]["checkpoint_every"] == 20
    text = run_plan(capsys, *flags, *times)
    assert re.search(r"mean time between failures +2:00:00\n", text)
    assert re.search(r"best interval, Daly +[\d.]+%, .* hours with checkpoint_every=20 \(", text)
    assert "goodput" not in json.loads(run_plan(capsys, *flags[:3], "--json"))


def test_plan_estimates_the_checkpoint_from_the_bytes_of_the_state(config_file, capsys):
    flags = (f"--config={config_file}", "--devices=1", "--accelerator=v4", "--json")
    plan = json.loads(run_plan(capsys, *flags, "--mtbf=30m", "--disk_gb_s=0.5"))
    memory, found = plan["memory"], plan["goodput"]
    state = memory["parameters"] + memory["optimizer"] + memory["ema"]
    assert found["checkpoint_bytes"] == pytest.approx(state, abs=64)  # And the number of steps.
    assert found["checkpoint_seconds"] == pytest.approx(state / 5e8, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mtbf=2"], "'2' is not a positive duration with a unit, as in 90s, 30m, 2h or 1.5d"),
        (["--mtbf=0h"], "'0h' is not a positive duration"),
        (["--mtbf=nanh"], "'nanh' is not a positive duration"),
        (["--mtbf=2h/host"], "'2h/host' is not DURATION or DURATION/device"),
        (["--restart_time=2m"], "--restart_time needs --mtbf, as in --mtbf=2h"),
    ],
)
def test_plan_rejects_invalid_times_in_one_line(config_file, capsys, flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_plan(capsys, f"--config={config_file}", *flags)
