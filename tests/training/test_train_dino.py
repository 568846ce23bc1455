"""Runs of self-distillation: resume to the same bits, and the same losses on every mesh."""

import functools
import shutil
import signal

import jax
import numpy as np
import pytest

from tests.support.runs import final_state, records, run_main, run_until
from tests.support.tiny import some_images, tiny
from vit_jax import main
from vit_jax.checkpoints import layout
from vit_jax.config.schema import Optimizer, Task
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.models.dino_vit import DinoViT, HeadShape
from vit_jax.models.registry import make_init
from vit_jax.tasks.dino import SelfDistillation
from vit_jax.training.schedules import make_hyperparams
from vit_jax.training.train_step import make_abstract_state, make_init_state, make_train_step
from vit_jax.weights.load import load

STEPS = 20
NOISY = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=32, mlp_size=64)
    config.model.update(num_heads=2, dropout=0.1, drop_path=0.1, gelu="erf", scan=True)
    config.data.update(source="digits", image_size=28, per_class=9)
    config.data.update(augment="random_resized_crop(0.4)|flip", local_crops=2, local_size=14)
    config.data.local_augment = "random_resized_crop(0.1,0.4)|flip"
    config.task.update(name="dino", prototypes=16, head_hidden=32, bottleneck=8)
    config.task.update(end_teacher_temperature=0.07, teacher_warmup_steps=9, koleo_weight=0.1)
    config.task.update(patch_weight=1.0, normalize_last_layer=False, centering=arg or "mean")
    config.optimizer.update(warmup_steps=5, weight_decay=0.04, end_weight_decay=0.4)
    config.optimizer.update(ema=0.9, end_ema=1.0, clip_norm=3.0, clip_per="parameter")
    config.optimizer.freeze_steps = (("last_layer", 4),)
    config.update(batch_size=16, steps=20, log_every=1, checkpoint_every=7, eval_every=10)
    return config
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("config") / "noisy.py"
    path.write_text(NOISY)
    return str(path)


@pytest.fixture(scope="module")
def finished(noisy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    done = run_main(f"--config={noisy}", f"--workdir={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.mark.slow
def test_a_run_reports_all_measures_of_collapse_from_the_first_step(finished):
    lines = records(finished)
    names = ("loss", "class_loss", "patch_loss", "koleo", "kl", "center_norm")
    names += ("teacher_entropy", "mean_entropy", "prototypes_used")
    first = next(line for line in lines if "train/loss" in line)
    assert first["step"] == 1
    assert {f"train/{name}" for name in names} <= first.keys()
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)
    val = next(line for line in lines if "val/n" in line)
    assert {"val/feature_std", "val/teacher_entropy", "val/mean_entropy"} <= val.keys()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(noisy, finished, tmp_path):
    run = f"--config={noisy}"
    assert run_until(11, signal.SIGKILL, run, folder=tmp_path) == -signal.SIGKILL
    done = run_main(run, f"--workdir={tmp_path}")
    assert done.code == 0, done.err
    assert records(tmp_path) == records(finished)
    assert final_state(tmp_path) == final_state(finished)


@pytest.mark.slow
def test_a_run_with_sinkhorn_resumes_to_the_same_bits(noisy, tmp_path):
    run, folder, copy = f"--config={noisy}:sinkhorn", tmp_path / "run", tmp_path / "copy"
    assert run_main(run, f"--workdir={folder}").code == 0
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / layout.FOLDER / str(STEPS))
    assert run_main(run, f"--workdir={copy}").code == 0
    assert records(copy) == records(folder)
    assert final_state(copy) == final_state(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder.safetensors", "folder"])
def test_convert_writes_the_encoder_of_the_teacher(finished, tmp_path, name, capsys):
    assert main.run(["convert", str(finished), str(tmp_path / name)]) == 0
    teacher = trees.flatten(load(finished).params())
    assert not any("head" in each for each in teacher)
    written = trees.flatten(load(tmp_path / name).params())
    assert all(np.array_equal(written[each], array) for each, array in teacher.items())


@pytest.mark.slow
def test_predict_names_what_features_are_good_for(finished, photo_folder):
    done = run_main("predict", f"--workdir={finished}", str(photo_folder))
    assert done.code != 0
    for word in ("without classes", "features", "--protocol=probe", "finetune.py:init="):
        assert word in done.error


HEAD = HeadShape(num_prototypes=12, num_layers=2, hidden_size=16, bottleneck=8, has_scale=True)
ADAMW = Optimizer(lr=1e-3, weight_decay=0.04, ema=0.9, clip_norm=3.0, clip_per="module")
BATCH = 16


def some_batch(step):
    random = np.random.default_rng(step)
    return {
        "image": some_images(BATCH, 2, 8, 12, 3, seed=step),
        "local": some_images(BATCH, 2, 4, 8, 3, seed=step + 100),
        "is_masked": random.random((BATCH, 2, 6)) < 0.4,
        "mask": np.ones(BATCH, np.float32),
    }


@functools.cache
def losses_of(sizes, centering="mean", koleo=0.1, accumulate=1, **options) -> np.ndarray:
    """Losses of eight steps on a mesh."""
    num_devices = int(np.prod(sizes))
    mesh = mesh_lib.make_mesh(*sizes, devices=jax.devices()[:num_devices])
    vit = tiny(num_classes=0, gelu="erf", kernels="plain", **options)
    shape = {"num_masked": 3, "patch_prototypes": 12, "local_crops": 2, "local_size": (4, 8)}
    model = DinoViT.of(vit, HEAD, **shape)
    section = Task(name="dino", patch_weight=1.0, koleo_weight=koleo, centering=centering)
    task = SelfDistillation(section, model)
    init, batches = make_init(model), mesh_lib.batch_sharding(mesh)
    abstract_state = make_abstract_state(init, ADAMW, mesh, task.init_task_state)
    step = make_train_step(
        task.loss,
        ADAMW,
        abstract_state,
        batches,
        accumulate=accumulate,
        teacher_targets=task.teacher_targets,
    )
    state = make_init_state(init, ADAMW, abstract_state, task.init_task_state)(jax.random.key(0))
    hyperparams, losses = make_hyperparams(ADAMW, 8), []
    with jax.set_mesh(mesh):
        for i in range(8):
            batch = jax.device_put(some_batch(i), batches)
            state, metrics = step(state, batch, jax.random.key(1), hyperparams(i))
            losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("sizes", [(2, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_losses_are_the_same_on_every_mesh(sizes, centering):
    alone = losses_of((1, 1, 1), centering)
    np.testing.assert_allclose(losses_of(sizes, centering), alone, rtol=1e-5)
    assert len(set(alone)) == len(alone)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"scan": True}, {"remat": "full"}, {"remat": "dots"}], ids=str)
def test_losses_are_the_same_with_scan_and_remat(options):
    expected = losses_of((1, 1, 1))
    np.testing.assert_allclose(losses_of((1, 1, 1), **options), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_losses_are_the_same_with_micro_batches_except_for_koleo(centering):
    options = {"centering": centering, "koleo": 0.0}
    whole = losses_of((1, 1, 1), **options)
    np.testing.assert_allclose(losses_of((1, 1, 1), accumulate=4, **options), whole, rtol=1e-5)
    np.testing.assert_allclose(losses_of((2, 1, 1), accumulate=4, **options), whole, rtol=1e-5)
