"""Which configs share a compiled program."""

import jax
import pytest

from tests.support.tiny_flags import tiny_flags
from vit_jax import config, main
from vit_jax.config.schema import Config, Model
from vit_jax.errors import ConfigError
from vit_jax.tasks import registry as task_registry
from vit_jax.training import build

TINY = Model(name="vit_ti16", patch=8, num_layers=1, hidden_size=16, mlp_size=32, num_heads=2)


CHANGES = [  # Fields, and if they change the program.
    ({"optimizer.lr": 0.5, "optimizer.schedule": "linear", "steps": 99, "seed": 7}, False),
    ({"optimizer.warmup_steps": 4, "log_every": 3, "keep_last": 3}, False),
    ({"optimizer.weight_decay": 0.5}, True),
    ({"optimizer.name": "sgd"}, True),
    ({"optimizer.kwargs.b2": 0.98}, True),
    ({"optimizer.kwargs.b2": 0.999}, False),  # The default.
    ({"optimizer.ema": 0.9}, True),
    ({"optimizer.end_ema": 1.0, "optimizer.end_weight_decay": 0.4}, False),
    ({"optimizer.clip_norm": None}, True),
    ({"optimizer.clip_per": "parameter"}, True),
    ({"optimizer.freeze_steps": (("head", 2),)}, True),
    ({"model.dropout": 0.1}, True),
    ({"task.label_smoothing": 0.1}, True),
    ({"data.mixup": 0.5}, True),
    ({"accumulate": 2}, True),
    ({"mesh.fsdp": 8, "mesh.data": 1}, True),
    ({"data.image_size": 24}, True),
]


@pytest.mark.parametrize(("fields", "is_other"), CHANGES, ids=lambda each: str(each)[:60])
def test_configs_share_a_program_unless_they_change_it(fields, is_other):
    start = Config(model=TINY, steps=10, batch_size=16)
    start = config.replaced(start, {"data.image_size": 16}, "config")

    def programs(run: Config):
        mesh, model = build.build_mesh(run), task_registry.build_model(run, num_classes=3)
        return build.build_programs(run, model, mesh)

    first = programs(start)
    assert (programs(config.replaced(start, fields, "config")) is not first) == is_other


def test_num_steps_refuses_more_than_can_be_counted():
    config = Config(epochs=1e12, batch_size=1)
    with pytest.raises(ConfigError, match=r"config\.epochs is .* which is 1e\+15 steps"):
        build.num_steps(config, 1000)
    with pytest.raises(ConfigError, match=r"config\.examples"):
        build.num_steps(Config(examples=10**12, batch_size=1), 1000)


@pytest.mark.parametrize("overrides", [(), ("data.mixup=0.2", "mesh.fsdp=2")])
def test_a_run_compiles_its_train_step_once(tmp_path, overrides):
    names = []

    def listen(event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert main.run(tiny_flags(tmp_path / "run", *overrides)) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert names.count("jit(train_step)") == 1
