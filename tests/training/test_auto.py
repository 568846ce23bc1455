"""Values chosen for 'auto': they fit, are kept, and are those of the weights."""

import dataclasses
import json

import pytest

from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.config.schema import Config, Data, Init, Model
from vit_jax.distributed import device_memory
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError
from vit_jax.tasks import registry as task_registry
from vit_jax.training import auto, memory, train

SMALL = Model(name="vit_ti16", patch=4, num_layers=2, hidden_size=32, mlp_size=64, num_heads=2)
FLAGS = (
    *("data.source=fake", "data.image_size=8", "data.num_examples=32", "data.num_classes=3"),
    *("model.name=vit_ti16", "model.patch=4", "model.num_layers=1", "model.hidden_size=16"),
    *("model.mlp_size=32", "model.num_heads=2", "batch_size=16", "steps=2"),
)


def parts(**fields):
    """A config with its model, on one device."""
    fields = {"steps": 1, "batch_size": 48, "model": SMALL, "data": Data(image_size=32)} | fields
    config = Config(**fields)
    mesh = mesh_lib.make_mesh(data=1, devices=mesh_lib.make_mesh().devices.flat[:1].tolist())
    return config, task_registry.build_model(config, num_classes=10), mesh


def peak(config, model, mesh) -> int:
    state = memory.add_shardings(memory.state_shapes(config, model), mesh)
    return memory.estimate(config, model, state).peak


@pytest.fixture
def limit(monkeypatch):
    """Returns a function that sets the memory of each device."""
    return lambda size: monkeypatch.setattr(device_memory, "memory_limit", lambda: size)


def test_accumulate_is_the_smallest_divisor_that_fits(limit):
    config, model, mesh = parts(accumulate="auto")
    peaks = {
        n: peak(dataclasses.replace(config, accumulate=n), model, mesh)
        for n in range(1, 49)
        if 48 % n == 0
    }
    for wanted in (3, 8):
        limit(peaks[wanted] / auto.USABLE * 1.001)
        chosen, note = auto.with_accumulate(config, model, mesh)
        assert chosen.accumulate == wanted
        assert note.startswith(f"accumulate={wanted}, float32: a step needs about ")
    limit(peaks[48] / 2)
    with pytest.raises(ConfigError, match=r"batch_size=48, data\.image_size=32, model\.name="):
        auto.with_accumulate(config, model, mesh)


def test_large_memory_needs_no_estimate(limit, monkeypatch):
    monkeypatch.setattr(memory, "estimate", None)
    limit(10**12)
    config, model, mesh = parts(accumulate="auto")
    assert auto.with_accumulate(config, model, mesh)[0].accumulate == 1
    fixed = dataclasses.replace(config, accumulate=4)
    assert auto.with_accumulate(fixed, model, mesh) == (fixed, "")
    limit(None)
    assert auto.with_accumulate(config, model, mesh)[0].accumulate == 1


def test_small_vit_needs_no_estimate_on_a_machine_of_16_gib(limit, monkeypatch):
    monkeypatch.setattr(memory, "estimate", None)
    limit(device_memory.CPU_SHARE * 2**34)
    small = {"model": Model(name="vit_s16"), "data": Data(image_size=224), "batch_size": 16}
    config, model, mesh = parts(accumulate="auto", **small)
    assert auto.with_accumulate(config, model, mesh)[0].accumulate == 1


def test_fixed_accumulate_that_cannot_fit_is_refused_with_one_that_does(limit):
    config, model, mesh = parts()
    limit(peak(config, model, mesh) / 4)
    with pytest.raises(ConfigError, match=r"use --config\.accumulate=\d+, or more") as caught:
        auto.with_accumulate(config, model, mesh)
    number = int(str(caught.value).partition("accumulate=")[2].partition(",")[0])
    limit(peak(config, model, mesh) / 1.5)  # Within the error of an estimate.
    chosen, note = auto.with_accumulate(config, model, mesh)
    assert chosen == config
    assert note.startswith("a step may not fit: it needs about ")
    advised = dataclasses.replace(config, accumulate=number)
    assert peak(advised, model, mesh) <= auto.USABLE * peak(config, model, mesh) / 4


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"batch_size": 4_194_304}, "batch_size=4194304"),
        ({"model": dataclasses.replace(SMALL, hidden_size=65536)}, r"model\.hidden_size=65536"),
        ({"model": dataclasses.replace(SMALL, num_layers=1024, mlp_size=2**18)}, "num_layers=1024"),
        ({"data": Data(image_size=8192)}, r"data\.image_size=8192"),
    ],
)
def test_step_that_no_machine_holds_is_refused_without_a_trace(fields, name, limit, monkeypatch):
    monkeypatch.setattr(memory, "state_shapes", None)
    limit(2**32)
    with pytest.raises(ConfigError, match=name):
        auto.with_accumulate(*parts(**fields))


def test_out_of_memory_names_fields_and_values_that_fit(limit):
    config, model, mesh = parts()
    limit(peak(config, model, mesh) / 2)
    text = str(auto.out_of_memory(config, model, mesh, True, "RESOURCE_EXHAUSTED"))
    assert "config.batch_size=48, accumulate=1, model.dtype=float32, model.remat=none" in text
    assert "use --config.accumulate=" in text
    text = str(auto.out_of_memory(config, model, mesh, False, "RESOURCE_EXHAUSTED"))
    assert "--config.accumulate" not in text  # It cannot change any more.
    assert "--config.model.remat=full" in text


def test_run_out_of_memory_is_one_line_and_takes_another_value_afterwards(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError("RESOURCE_EXHAUSTED: 9 GB")

    flags = [f"--config.{flag}" for flag in FLAGS]
    file = tmp_path / "tiny.py"
    file.write_text("from vit_jax.config import base_config\ndef get_config(_):\n"
                    "  return base_config()\n")  # fmt: skip
    run = [f"--config={file}", f"--workdir={tmp_path / 'w'}", *flags, "--config.mesh.fsdp=8"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "_run", full)
        with pytest.raises(ConfigError, match=r"out of memory with config\.batch_size=16, accumu"):
            main.run(run)
    assert main.run([*run, "--config.accumulate=2"]) == 0


def test_auto_is_kept_in_config_json_and_taken_from_the_checkpoint(tmp_path, capsys, limit):
    file = tmp_path / "tiny.py"
    file.write_text("from vit_jax.config import base_config\ndef get_config(_):\n"
                    "  return base_config()\n")  # fmt: skip
    fields = (*FLAGS, "accumulate=auto", "model.dtype=auto", "mesh.fsdp=8")
    run = [f"--config={file}", f"--workdir={tmp_path / 'w'}", *(f"--config.{f}" for f in fields)]
    limit(40_000)  # The estimates are 39,498 bytes, and 29,413 with two micro-batches.
    assert main.run(run) == 0
    stored = json.loads((tmp_path / "w" / "config.json").read_text())
    assert stored["accumulate"] == 2
    assert stored["model"]["dtype"] == "float32"
    assert "accumulate=2, float32: a step needs about 0.03 MB" in capsys.readouterr().out
    limit(10**12)  # A resumed run keeps its choice.
    assert main.run(run) == 0
    assert json.loads((tmp_path / "w" / "config.json").read_text()) == stored
    again = Config(model=Model(name="auto", dtype="auto"), accumulate="auto", steps=1)
    saved = auto.with_saved(again, tmp_path / "w")
    assert (saved.accumulate, saved.model.dtype, saved.model.hidden_size) == (2, "float32", 16)
    _model_of_weights(tmp_path / "w")


def _model_of_weights(where):
    """`model.name=auto` takes the sizes of weights; fields that are set stay."""
    own = Model(name="auto", pool="gap", dropout=0.1)
    config = Config(model=own, init=Init(path=str(where), new_head=True), steps=1)
    found = auto.with_model(config).model
    assert (found.name, found.patch, found.hidden_size) == ("vit_ti16", 4, 16)
    assert (found.pool, found.dropout) == ("gap", 0.1)


def test_model_of_published_weights_needs_no_download():
    config = Config(model=Model(name="auto"), init=Init(path="imagenet21k/ViT-L_32"), steps=1)
    assert auto.with_model(config).model == Model(name="vit_l32", pre_logits=True)
    new_head = dataclasses.replace(config, init=Init(path="imagenet21k/ViT-L_32", new_head=True))
    assert auto.with_model(new_head).model == Model(name="vit_l32")


def test_model_auto_needs_weights():
    with pytest.raises(ConfigError, match=r"'auto', the model of init\.path"):
        auto.with_model(Config(model=Model(name="auto"), steps=1))


def test_accumulate_takes_a_number_or_auto():
    config = config_lib.base_config()
    config.update(steps=1)
    for text, value in (("auto", "auto"), ("4", 4)):
        assert config_lib.resolve(config, {"accumulate": text})[""].accumulate == value
    with pytest.raises(ConfigError, match=r"accumulate is 'many'; it must be a whole number or"):
        config_lib.resolve(config, {"accumulate": "many"})


def test_new_head_replaces_a_projection_too(monkeypatch):
    monkeypatch.setattr(auto.load, "model_section", lambda where: Model("clip_b16", projection=512))
    config = Config(model=Model(name="auto"), init=Init(path="clip.npz"), steps=1)
    assert auto.with_model(config).model.projection == 512
    config = dataclasses.replace(config, init=Init(path="clip.npz", new_head=True))
    assert auto.with_model(config).model.projection is None
    own = dataclasses.replace(config, model=Model(name="auto", projection=512))
    assert auto.with_model(own).model.projection == 512
