"""Tests of `checkpoint`: exact restore, detection of damage, retention and errors."""

import asyncio
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.support.json_steps import write_step
from vit_jax.checkpoints import checkpoint, layout
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import CheckpointError
from vit_jax.models import trees

META = {"classes": ["a", "b"], "seconds": 1.5}
DATA = {"seed": 0, "epoch": 1, "examples_seen": 96}


def make_state(mesh=None) -> dict:
    """Returns a state of random weights, half of them split over `fsdp`."""
    mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
    keys = jax.random.split(jax.random.key(0), 3)
    state = {
        "step": jnp.asarray(3, jnp.int32),
        "params": {
            "head": {"kernel": jax.random.normal(keys[0], (64, 32)), "bias": jnp.arange(32.0)},
            "cls": jax.random.normal(keys[1], (1, 1, 64)),
        },
        "opt_state": [{"mu": jax.random.normal(keys[2], (64, 32)).astype(jnp.bfloat16)}],
    }
    return jax.device_put(state, mesh_lib.tree_shardings(state, mesh))


def shapes(state, mesh=None):
    shardings = (
        mesh_lib.tree_shardings(state, mesh) if mesh else jax.tree.map(lambda _: None, state)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
        is_leaf=lambda x: x is None,
    )


def save(folder: pathlib.Path, state, steps=(3,), **options) -> pathlib.Path:
    writer = checkpoint.Checkpoints(folder, **options)
    for step in steps:
        writer.save(step, state, data=DATA, meta=META)
    writer.wait()
    writer.close()
    return folder / str(steps[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    return save(tmp_path_factory.mktemp("run") / layout.FOLDER, make_state())


def assert_bit_equal(a, b):
    a, b = trees.flatten(a), trees.flatten(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def test_restore_returns_the_saved_bits_and_dtypes(saved):
    state = make_state()
    assert_bit_equal(checkpoint.restore(saved, shapes(state)), state)
    assert layout.read_item(saved, "data") == DATA
    assert layout.read_item(saved, "meta") == META


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_restore_reads_a_checkpoint_of_8_devices_on_fewer_devices(tmp_path, num_devices):
    eight = mesh_lib.make_mesh(1, 8)
    step = save(tmp_path / "c", make_state(eight))
    mesh = mesh_lib.make_mesh(1, num_devices, devices=jax.devices()[:num_devices])
    restored = checkpoint.restore(step, shapes(make_state(), mesh))
    assert_bit_equal(restored, make_state())
    kernel = restored["params"]["head"]["kernel"]
    assert len(kernel.sharding.device_set) == num_devices
    spec = PartitionSpec() if num_devices == 1 else PartitionSpec("fsdp")
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


def test_save_allows_donation_of_the_arrays_as_soon_as_it_returns(tmp_path):
    writer = checkpoint.Checkpoints(tmp_path / "c")
    state, meta = make_state(), {"seconds": {"train": 1.0}}
    expected = jax.tree.map(np.array, state)
    writer.save(3, state, data=DATA, meta=meta)
    meta["seconds"]["train"] = 2.0  # Changed before the background writer has finished.
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    writer.wait()
    writer.close()
    assert_bit_equal(checkpoint.restore(tmp_path / "c" / "3", shapes(expected)), expected)
    assert layout.read_item(tmp_path / "c" / "3", "meta") == {"seconds": {"train": 1.0}}


@pytest.mark.slow
def test_restore_detects_every_flipped_bit(saved, tmp_path):
    """Orbax alone restores most of these flips without an error."""
    abstract_state, state = shapes(make_state()), make_state()
    rng = random.Random(0)
    files = [p for p in sorted(saved.rglob("*")) if p.is_file() and p.stat().st_size]
    arrays = [p for p in files if p.parent.name == "d"]
    num_errors = 0
    for trial in range(48):
        copy = tmp_path / str(trial) / saved.name
        shutil.copytree(saved, copy)
        choice = rng.choice(arrays if trial % 2 else files)
        damaged = copy / choice.relative_to(saved)
        content = bytearray(damaged.read_bytes())
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(content)
        try:
            for item in ("data", "meta"):
                layout.read_item(copy, item)
            assert_bit_equal(checkpoint.restore(copy, abstract_state), state)
        except CheckpointError as error:
            num_errors += 1
            assert "\n" not in str(error)
            assert str(copy) in str(error)  # Names the file, or the leaf of this step.
        shutil.rmtree(copy.parent)
    assert num_errors >= 12


def test_restore_names_the_array_with_a_wrong_checksum(saved, tmp_path, monkeypatch):
    original = checkpoint.crc32c
    wrong = make_state()["params"]["cls"].shape
    monkeypatch.setattr(
        checkpoint, "crc32c", lambda a: original(a) + (1 if a.shape == wrong else 0)
    )
    with pytest.raises(CheckpointError, match=r"params/cls is damaged"):
        checkpoint.restore(saved, shapes(make_state()))


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
def test_restore_names_a_damaged_file_in_one_line(saved, tmp_path, damage):
    for number, path in enumerate(sorted(saved.rglob("*"))):
        if not path.is_file() or path.name == "commit_success.txt" or not path.stat().st_size:
            continue
        copy = tmp_path / f"{number}" / saved.name
        shutil.copytree(saved, copy)
        damaged = copy / path.relative_to(saved)
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
        if damage == "gone":
            damaged.unlink()
        try:
            for item in ("data", "meta"):
                layout.read_item(copy, item)
            assert_bit_equal(checkpoint.restore(copy, shapes(make_state())), make_state())
        except CheckpointError as error:
            assert str(copy) in str(error)
            assert "\n" not in str(error)


def test_restore_lists_all_differing_leaves_at_once(saved):
    abstract_state = shapes(make_state())
    abstract_state["params"]["head"]["kernel"] = jax.ShapeDtypeStruct((64, 10), jnp.float32)
    abstract_state["params"]["cls"] = jax.ShapeDtypeStruct((1, 1, 64), jnp.bfloat16)
    abstract_state["params"]["extra"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    del abstract_state["params"]["head"]["bias"]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(saved, abstract_state)
    message = str(caught.value)
    assert "params/head/kernel: checkpoint (64, 32) float32, model (64, 10) float32" in message
    assert "params/cls: checkpoint (1, 1, 64) float32, model (1, 1, 64) bfloat16" in message
    assert "params/extra: checkpoint none, model (5) float32" in message
    assert "params/head/bias: checkpoint (32) float32, model none" in message


def test_restore_of_parameters_alone_skips_the_optimizer_state(saved):
    restored = checkpoint.restore(saved, checkpoint.stored_param_shapes(saved))
    assert_bit_equal(restored, {"params": make_state()["params"]})
    assert isinstance(restored["params"]["cls"], np.ndarray)


def test_stored_param_shapes_are_those_of_the_averaged_parameters(tmp_path):
    state = {"params": {"w": jnp.zeros(3)}, "ema": {"w": jnp.ones(3)}}
    step = save(tmp_path / layout.FOLDER, state)
    restored = checkpoint.restore(step, checkpoint.stored_param_shapes(step))
    assert_bit_equal(restored, {"ema": {"w": np.ones(3, np.float32)}})


def test_checkpoints_keep_the_last_steps_and_the_multiples(tmp_path):
    save(tmp_path / "c", make_state(), steps=range(1, 8), keep_last=2, keep_every=3)
    assert layout.list_steps(tmp_path / "c") == [3, 6, 7]


def test_save_on_a_full_disk_raises_and_keeps_the_last_step(tmp_path, monkeypatch):
    folder = tmp_path / "c"
    save(folder, make_state())
    writer = checkpoint.Checkpoints(folder)

    async def raise_disk_full(*_, **__):
        await asyncio.sleep(0)
        raise OSError(28, "No space left on device")

    handler = ocp.JsonCheckpointHandler
    monkeypatch.setattr(handler, "_save_fn", raise_disk_full)
    with pytest.raises(CheckpointError, match=r"cannot save .*No space left on device"):
        writer.save(4, make_state(), data=DATA, meta=META)
        writer.wait()
    assert layout.list_steps(folder) == [3]
    assert_bit_equal(checkpoint.restore(folder / "3", shapes(make_state())), make_state())


def test_remove_unfinished_keeps_the_steps(tmp_path):
    for name in ("checkpoints/3", "checkpoints/4.orbax-checkpoint-tmp", "best/2"):
        (tmp_path / name / "state").mkdir(parents=True)
    checkpoint.remove_unfinished(tmp_path)
    assert sorted(tmp_path.glob("*/*")) == [tmp_path / "best/2", tmp_path / "checkpoints/3"]


@pytest.mark.parametrize("linked", [3, 5])
def test_checkpoints_keep_a_step_that_is_a_link_and_its_target(tmp_path, linked):
    folder, target = tmp_path / "c", tmp_path / "elsewhere"
    save(folder, make_state(), steps=(3, 5))
    (folder / str(linked)).rename(target)
    (folder / str(linked)).symlink_to(target)
    (folder / "notes.txt").write_text("")
    save(folder, make_state(), steps=(7, 9), keep_last=2)
    assert layout.list_steps(folder) == [linked, 7, 9]
    assert (target / "manifest").is_dir()
    assert (folder / "notes.txt").exists()


def test_move_damaged_step_keeps_an_earlier_damaged_step(tmp_path):
    folder = tmp_path / "checkpoints"
    for _ in range(2):
        save(folder, make_state())
        writer = checkpoint.Checkpoints(folder)
        writer.move_damaged_step(3)
        writer.close()
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["3", "3-again"]


def test_find_step_folder_refuses_a_run_whose_best_weights_are_missing(tmp_path):
    step = write_step(tmp_path / "checkpoints", 8, best_step=4)
    with pytest.raises(CheckpointError, match=r"best is missing; .* those of step 4"):
        layout.find_step_folder(tmp_path)
    assert layout.find_step_folder(step) == step
    best = write_step(tmp_path / "best", 4)
    assert layout.find_step_folder(tmp_path) == best
