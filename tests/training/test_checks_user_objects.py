"""Checks of user-defined objects before a run starts: what they return, in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import tiny
from vit_jax import config as config_lib
from vit_jax.config import registry
from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError
from vit_jax.tasks import losses
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.losses import smooth_labels, soft_distillation, softmax_cross_entropy
from vit_jax.training.checks import check_stage

HERE = __name__


def right(logits, labels):
    return softmax_cross_entropy(logits, labels)


def of_targets(logits, labels):  # Right only where images are mixed.
    return -(labels * logits).sum(-1)


def of_numbers(logits, labels):  # Right only for class numbers.
    return jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


def mean_ce(logits, labels):
    return softmax_cross_entropy(logits, labels).mean()


def per_class(logits, labels):
    return logits - smooth_labels(labels, logits.shape[-1])


def hits(logits, labels):
    return logits.argmax(-1) == labels


def scaled(logits, labels, factor=1.0):
    return factor * softmax_cross_entropy(logits, labels)


def per_column(logits, labels):
    return logits.mean(0)


def nothing(logits, labels):
    pass


def mean_distillation(logits, teacher, temperature):
    return soft_distillation(logits, teacher, temperature).mean()


class MeanScore(Classification):
    def score(self, params, batch):
        return {"loss": super().score(params, batch)["loss"].mean()}


def check(model=None, **changes):
    config = config_lib.replaced(Config(steps=10), changes, "config")
    registry.import_objects(registry.user_names(config, "config"))
    check_stage(config, model or tiny(), 10)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mean_ce", "returned float32 () for logits (4, 5) and labels (4,); it must return one"),
        ("per_class", "returned float32 (4, 5) for logits"),
        ("hits", "returned bool (4,) for logits"),
        ("nothing", "returned NoneType for logits"),
        ("of_targets", "cannot be used for training: "),
    ],
)
def test_a_loss_that_returns_no_value_per_example_is_refused(loss, message):
    with pytest.raises(ConfigError) as caught:
        check(**{"task.loss": f"{HERE}:{loss}"})
    assert str(caught.value).startswith(f"config.task.loss='{HERE}:{loss}' {message}")
    assert "\n" not in str(caught.value)


def test_a_loss_per_class_is_refused_whatever_the_number_of_classes():
    for num_classes in (3, 4, 5):
        with pytest.raises(ConfigError, match=rf"per_column' returned float32 \({num_classes},\)"):
            check(tiny(num_classes=num_classes), **{"task.loss": f"{HERE}:per_column"})


def test_a_loss_gets_targets_only_where_images_are_mixed_or_labels_smoothed():
    check(**{"task.loss": f"{HERE}:right", "data.mixup": 0.2})
    check(**{"task.loss": f"{HERE}:of_numbers"})
    for field in ("data.mixup", "task.label_smoothing"):
        with pytest.raises(ConfigError, match="of_numbers' cannot be used for training") as caught:
            check(**{"task.loss": f"{HERE}:of_numbers", field: 0.1})
        assert str(caught.value).endswith(f"; labels are (B, K) because of {field}.")


def test_options_of_a_loss_are_given_in_parentheses():
    check(**{"task.loss": f"{HERE}:scaled(factor=0.5)"})
    loss = losses.find_loss(f"{HERE}:scaled(factor=0.5)").function
    logits, labels = np.zeros((2, 4), np.float32), np.array([1, 3])
    np.testing.assert_allclose(loss(logits, labels), 0.5 * np.log([4, 4]), rtol=1e-6)
    with pytest.raises(ConfigError, match=r"scaled\(q=1\)' cannot be .* keyword argument 'q'"):
        check(**{"task.loss": f"{HERE}:scaled(q=1)"})
    for text in ("scaled(0.5)", "scaled(factor=half)", "scaled(", "scaled(*(1,))"):
        with pytest.raises(ConfigError, match=r"package\.module:name\(q=0\.3\), with"):
            check(**{"task.loss": f"{HERE}:{text}"})
    with pytest.raises(ConfigError, match=r"MeanScore\(a=1\)'; this field takes no options"):
        check(**{"task.name": f"{HERE}:MeanScore(a=1)"})


def test_a_distillation_must_return_a_value_per_example():
    with pytest.raises(
        ConfigError, match=r"task\.distill=.*mean_distillation' returned float32 \("
    ):
        check(**{"task.teacher": "w.npz", "task.distill": f"{HERE}:mean_distillation"})


def test_the_scores_of_a_task_have_a_row_per_example():
    with pytest.raises(ConfigError, match=r"MeanScore': score 'loss' is float32 \(\) for 4 examp"):
        check(**{"task.name": f"{HERE}:MeanScore"})


class Averaged(Classification):
    """Learns from the class probabilities of its averaged parameters."""

    def init_task_state(self):
        return {"center": jnp.zeros(5)}

    def teacher_targets(self, teacher_params, task_state, batch, step, key):
        logits = self.model.apply({"params": teacher_params}, batch["image"])
        return {"targets": jax.nn.softmax(logits - task_state["center"][None])}, task_state, {}


class OtherState(Averaged):
    def teacher_targets(self, teacher_params, task_state, batch, step, key):
        return super().teacher_targets(teacher_params, {"center": jnp.zeros(1)}, batch, step, key)


class MeanTarget(Averaged):
    def teacher_targets(self, teacher_params, task_state, batch, step, key):
        columns, *rest = super().teacher_targets(teacher_params, task_state, batch, step, key)
        return columns | {"mean": columns["targets"].mean(0)}, *rest


def test_targets_of_a_teacher_have_a_row_per_example_and_keep_the_form_of_the_task_state():
    check(**{"task.name": f"{HERE}:Averaged"})
    with pytest.raises(ConfigError, match=r"OtherState': teacher_targets returns the task state"):
        check(**{"task.name": f"{HERE}:OtherState"})
    with pytest.raises(ConfigError, match=r"MeanTarget': target 'mean' is float32 \(5,\) for 4 ex"):
        check(**{"task.name": f"{HERE}:MeanTarget"})
