"""Tests of `best_weights`: which weights are kept, and which are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax.checkpoints import layout
from vit_jax.checkpoints.best_weights import BestWeights
from vit_jax.errors import CheckpointError

PARAMS = {"head": {"bias": jnp.arange(4.0)}}
CONFIG = config_lib.to_dict(config_lib.resolve(config_lib.base_config(), {"steps": 10}))


def save_best(folder, scores: dict[int, float], **config) -> BestWeights:
    """Offers weights with these scores as the best, by step."""
    best = BestWeights(folder)
    for step, top1 in scores.items():
        meta = {"config": CONFIG | config}
        best.save_if_better(step, PARAMS, {"top1": top1}, meta)
    best.close()
    return best


def test_best_weights_are_those_of_the_highest_finite_score(tmp_path):
    save_best(tmp_path, {2: np.nan, 4: 0.5, 6: 0.75, 8: 0.75, 10: np.nan})
    assert layout.list_steps(tmp_path / "best") == [6]
    best = BestWeights(tmp_path)
    best.restore(10, 6, CONFIG)
    assert (best.step, best.metrics) == (6, {"top1": 0.75})


@pytest.mark.parametrize("step", [5, 6])
def test_best_weights_of_a_repeated_step_replace_those_of_later_steps(tmp_path, step):
    save_best(tmp_path, {6: 0.5})
    best = BestWeights(tmp_path)
    best.restore(3, 0, CONFIG)
    best.save_if_better(step, PARAMS, {"top1": 0.75}, {"config": CONFIG})
    best.close()
    assert layout.list_steps(tmp_path / "best") == [step]
    again = BestWeights(tmp_path)
    again.restore(9, step, CONFIG)
    assert again.metrics == {"top1": 0.75}


@pytest.mark.parametrize(
    ("restored", "recorded", "message"),
    [
        *((8, 6, None), (8, None, None), (6, 4, None), (5, 4, None)),
        (8, 4, "expects step 4"),
        (8, 0, "has weights of step 6; the checkpoint of step 8 expects step none"),
    ],
)
def test_best_weights_must_be_those_that_the_checkpoint_names(
    tmp_path, restored, recorded, message
):
    save_best(tmp_path, {6: 0.5})
    best = BestWeights(tmp_path)
    if message is None:
        best.restore(restored, recorded, CONFIG)
        assert best.step == 6
        return
    with pytest.raises(CheckpointError, match=message):
        best.restore(restored, recorded, CONFIG)


def test_best_weights_that_are_missing_or_of_another_run_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no weights; .* expects step 4"):
        BestWeights(tmp_path / "a").restore(8, 4, CONFIG)
    save_best(tmp_path / "b", {6: 0.5}, seed=1)
    best = BestWeights(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"best/6 belongs to a run .* differs in seed"):
        best.restore(8, 6, CONFIG)
    assert best.move_aside() == [tmp_path / "b" / "damaged" / "best-6"]
    assert layout.list_steps(tmp_path / "b" / "best") == []
