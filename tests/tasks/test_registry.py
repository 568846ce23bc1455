"""Tasks by name, and a task of one's own."""

import pytest

from tests.support.tiny import tiny
from vit_jax.config.schema import Config, Data, Model, Task
from vit_jax.config.validate import import_user_code
from vit_jax.errors import ConfigError
from vit_jax.evaluation.evaluators import EVALUATORS, find_evaluator
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.registry import TASKS, build_model, make_task


class Regression(Classification):
    """A task of one's own."""

    @staticmethod
    def rules(config):
        yield config.data.mixup == 0, f"data.mixup is {config.data.mixup}; regression has none"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_an_evaluator_and_builds_its_model(name):
    section = Task(name=name)
    assert find_evaluator(section) in EVALUATORS.values()
    shape = Model(name="vit_ti16", patch=4, num_layers=1, hidden_size=8, mlp_size=8, num_heads=2)
    config = Config(model=shape, data=Data(image_size=8), task=section)
    model = build_model(config, num_classes=3)
    assert make_task(section, model).model is model


def test_make_task_accepts_a_class_of_ones_own():
    section, model = Task(name=f"{__name__}:Regression"), tiny()
    assert make_task(section, model) == Regression(section, model)
    assert find_evaluator(section) is EVALUATORS["classification"]


def test_training_checks_the_rules_of_a_task_of_ones_own():
    own = Config(steps=1, task=Task(name=f"{__name__}:Regression"), data=Data(mixup=0.2))
    with pytest.raises(ConfigError, match=r"^config\.data\.mixup is 0\.2; regression has none\.$"):
        import_user_code(own)
