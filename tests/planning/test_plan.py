"""The verb `plan`: what it prints, whether it fits, and what it advises."""

import dataclasses
import json
import re

import pytest

from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.config.schema import Config, Data, Mesh, Model, Optimizer
from vit_jax.data import dataset_info
from vit_jax.errors import ConfigError
from vit_jax.models.flops import training_flops
from vit_jax.models.registry import create_model
from vit_jax.planning import plan
from vit_jax.planning.accelerators import ACCELERATORS
from vit_jax.planning.scenario import Setting, advise, largest_batch

TINY = Model(name="vit_ti16", patch=8, num_layers=2, hidden_size=32, mlp_size=64, num_heads=2)
CARD = ACCELERATORS["h100"]


def config_of(**fields) -> Config:
    fields = {"model": TINY, "data": Data(image_size=32), "batch_size": 64, "epochs": 2} | fields
    return Config(**fields)


def setting_of(memory: float = CARD.memory, num_devices: int = 8, **fields) -> Setting:
    card = dataclasses.replace(CARD, memory=memory)
    return Setting(config_of(**fields), card, num_devices, num_classes=10)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the command line prints of a config file, as text and as JSON."""
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


def run(capsys, *arguments) -> str:
    assert main.run(["plan", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_plan_tells_steps_flops_and_time_of_the_run(printed, capsys):
    flags = (f"--config={printed}", "--devices=4", "--mesh=fsdp:2", "--accelerator=v4")
    found = json.loads(run(capsys, *flags, "--mfu=0.5", "--json"))
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


def test_the_text_names_memory_verdict_and_what_binds(printed, capsys):
    text = run(capsys, f"--config={printed}", "--devices=8")
    for words in ("memory per device", "activations", "fits, with", "largest batch", "exaFLOPs"):
        assert words in text
    assert "8 H100 SXM, mesh data:8,fsdp:1,tensor:1" in text


def test_what_is_computed_again_counts_as_hardware_flops_alone(printed, capsys):
    flags = (f"--config={printed}", "--devices=1", "--json", "--config.model.remat=full")
    found = json.loads(run(capsys, *flags))["flops"]
    T, D, M, L = 17, 32, 64, 2
    again = 2 * 64 * L * (T * (4 * D * D + 2 * D * M) + 2 * T * T * D)
    assert found["of_hardware_per_step"] - found["per_step"] == again


def test_the_compiled_step_stands_beside_the_formula(printed, capsys):
    flags = (f"--config={printed}", "--devices=8", "--mesh=fsdp:8", "--compile", "--json")
    found = json.loads(run(capsys, *flags, "--config.batch_size=4096"))["compiled"]
    assert abs(found["difference_percent"]) < 10
    assert set(found["bytes_sent"]) >= {"all-gather", "all-reduce + slice"}


@pytest.mark.parametrize(
    ("file", "exaflops"),
    [  # Table 6.
        ("configs/pretrain.py:data=jft,model=vit_b16", 224),
        ("configs/pretrain.py:data=jft,model=vit_l16,epochs=14", 1567),
        ("configs/pretrain.py:data=jft,model=vit_h14", 4262),
        ("configs/pretrain.py:data=jft,model=r50_b32", 106),
        ("configs/pretrain.py:data=jft,model=bit_r50x1", 50),
    ],
)
def test_pretraining_on_jft_spends_the_exaflops_of_table_6(file, exaflops):
    config = config_lib.check(config_lib.load(file))[""]
    data = plan.data_of(config, file, None, None)
    setting = Setting(config, ACCELERATORS["v3"], 512, data["num_classes"])
    steps = round(config.epochs * data["num_examples"] / config.batch_size)
    assert steps * setting.flops() / 1e18 == pytest.approx(exaflops, rel=0.03)


def test_the_layout_lists_arrays_and_what_fsdp_leaves_whole_is_named(printed, capsys):
    flags = (f"--config={printed}", "--devices=5", "--mesh=fsdp:5", "--config.batch_size=65")
    wide = ("--config.model.hidden_size=512", "--config.model.mlp_size=1024")  # Neither by 5.
    text = run(capsys, *flags, *wide, "--layout")
    assert re.search(r"whole on each device +Transformer/encoderblock_\*/MlpBlock_0/Dense_0", text)
    assert "| Transformer/encoderblock_*/MlpBlock_0/Dense_0/kernel " in text
    assert "| 512 x 1024 " in text
    assert "whole on each device" not in run(capsys, *flags, "--config.model.hidden_size=40")


def test_the_largest_batch_fits_and_the_next_does_not():
    setting = setting_of(memory=3e6)
    batch = largest_batch(setting)
    assert batch % 8 == 0
    assert setting.change(batch_size=batch).fits()
    assert not setting.change(batch_size=batch + 8).fits()
    assert largest_batch(setting_of(memory=1000.0)) is None


def test_advice_is_the_mildest_that_is_enough():
    roomy = setting_of().memory().peak
    words, changed = advise(setting_of(memory=0.8 * roomy))
    assert words == ["model.dtype=bfloat16"]
    assert changed.fits()
    words, changed = advise(setting_of(memory=0.3 * roomy))
    assert words[0] == "model.dtype=bfloat16"
    assert any(word.startswith("model.remat") for word in words)
    assert changed.fits()
    words, changed = advise(setting_of(memory=1000.0))
    assert not changed.fits()


def test_a_batch_that_devices_cannot_share_is_told(printed, capsys):
    with pytest.raises(ConfigError, match="batch_size 64 is not divisible by 3 devices"):
        run(capsys, f"--config={printed}", "--devices=3")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--accelerator=h101"], "Did you mean h100"),
        (["--mfu=40"], "not a number above 0"),
        (["--devices=0"], "not a whole number from 1 on"),
        (["--devices=4", "--mesh=fsdp:3"], "does not fit 4 devices"),
        (["--devices=128", "--compile"], "at most 64 devices"),
    ],
)
def test_mistakes_are_one_line(printed, capsys, flags, words):
    with pytest.raises(ConfigError, match=words) as error:
        run(capsys, f"--config={printed}", *flags)
    assert "\n" not in str(error.value)


def test_a_plan_needs_no_data(capsys):
    data = Data(source="prepared", dir="/nowhere", image_size=32)
    found = plan.data_of(config_of(data=data), "tiny.py", None, None)
    assert found == {
        "num_classes": 1000,
        "num_examples": 1_281_167,
        "from": "assumed, as of ImageNet: no data here",
    }
    found = plan.data_of(config_of(data=data), "tiny.py", 7, 70)
    assert found == {"num_classes": 7, "num_examples": 70, "from": "given"}
    found = plan.data_of(config_of(data=data), "f.py:data=jft,smoke", None, None)
    assert (found["num_classes"], found["num_examples"]) == (18_291, 303_000_000)
    part = dataclasses.replace(data, split="train[:99%]", dir="/data/imagenet21k/", fraction=0.5)
    found = plan.data_of(config_of(data=part), "f.py", None, None)
    assert found["num_examples"] == round(14_197_122 * 0.99 * 0.5)


def test_slices_of_a_split_are_understood():
    splits = ("train", "train[:98%]", "train[98%:]", "train[10%:30%]", "train[:800]")
    assert [round(dataset_info.share_of(s), 4) for s in splits] == [1.0, 0.98, 0.02, 0.2, 800]


def test_sam_takes_two_gradients():
    once, twice = setting_of(), setting_of(optimizer=Optimizer(sam_rho=0.1))
    assert twice.flops() == 2 * once.flops()
    assert twice.memory().gradients == 2 * once.memory().gradients


def test_devices_are_those_of_a_full_mesh(printed, capsys):
    found = json.loads(run(capsys, f"--config={printed}", "--mesh=data:2,fsdp:2", "--json"))
    assert found["devices"] == 4
    assert Mesh(**found["mesh"]) == Mesh(data=2, fsdp=2, tensor=1)
