"""The rates that a run hands its steps, and what makes another program of a step."""

import numpy as np
import pytest

from vit_jax import config
from vit_jax.config.schema import Config, Model, Optimizer
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build
from vit_jax.training.optimizer import make_schedule

TINY = Model(name="vit_ti16", patch=8, num_layers=1, hidden_size=16, mlp_size=32, num_heads=2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rsqrt", "stair", "constant"])
def test_each_step_is_given_the_rate_of_its_schedule(schedule):
    options = {"schedule": schedule, "warmup_steps": 3, "stair_at": (0.5,), "cooldown_steps": 4}
    hyperparams = build.make_hyperparams(Optimizer(lr=0.1, **options), total_steps=20)
    expected = make_schedule(0.1, total_steps=20, **options)
    for step in range(20):
        assert set(hyperparams(step)) == {"lr"}
        np.testing.assert_allclose(
            hyperparams(step)["lr"], expected(step), rtol=1e-5
        )  # Of cos near its end.
        assert hyperparams(step)["lr"].dtype == np.float32


def test_the_radius_of_sam_falls_with_the_rate():
    rule = Optimizer(
        lr=0.4, end_lr=0.1, schedule="linear", sam_rho=0.6, sam_rho_min=0.2, warmup_steps=2
    )
    hyperparams = build.make_hyperparams(rule, total_steps=12)
    for step in range(12):
        lr, rho = hyperparams(step)["lr"], hyperparams(step)["rho"]
        share = max(float(lr) - 0.1, 0) / 0.3  # arXiv:2203.08065, section 4.2.
        np.testing.assert_allclose(rho, 0.2 + 0.4 * share, rtol=1e-5)
    level = Optimizer(lr=0.4, end_lr=0.4, schedule="constant", sam_rho=0.6, sam_rho_min=0.2)
    assert float(build.make_hyperparams(level, total_steps=3)(2)["rho"]) == np.float32(0.6)
    constant = build.make_hyperparams(Optimizer(lr=0.4, sam_rho=0.6), total_steps=12)
    assert [float(constant(step)["rho"]) for step in (0, 11)] == [np.float32(0.6)] * 2


CHANGES = [  # Whether what is compiled is another.
    ({"optimizer.lr": 0.5, "optimizer.schedule": "linear", "steps": 99, "seed": 7}, False),
    ({"optimizer.warmup_steps": 4, "log_every": 3, "data.val_fraction": 0.2}, False),
    ({"optimizer.weight_decay": 0.5}, True),
    ({"optimizer.name": "sgd"}, True),
    ({"optimizer.ema": 0.9}, True),
    ({"optimizer.clip_norm": None}, True),
    ({"model.dropout": 0.1}, True),
    ({"task.label_smoothing": 0.1}, True),
    ({"data.mixup": 0.5}, True),
    ({"accumulate": 2}, True),
    ({"mesh.fsdp": 8, "mesh.data": 1}, True),
    ({"data.image_size": 24}, True),
]


@pytest.mark.parametrize(("fields", "is_other"), CHANGES, ids=lambda each: str(each)[:60])
def test_runs_share_a_program_unless_it_would_be_another(fields, is_other):
    start = Config(model=TINY, steps=10, batch_size=16)
    start = config.replaced(start, {"data.image_size": 16}, "config")

    def programs(run: Config):
        mesh, model = build.build_mesh(run), task_registry.build_model(run, num_classes=3)
        return build.assemble(run, model, mesh)

    first = programs(start)
    assert (programs(config.replaced(start, fields, "config")) is not first) == is_other
