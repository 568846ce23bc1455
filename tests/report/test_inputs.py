"""Training inputs in a page against the data pipeline of step 1."""

import numpy as np
import pytest

from tests.support.written_pages import Page
from vit_jax.checkpoints import workdir
from vit_jax.data import loader
from vit_jax.data.preprocess import TrainRecipe, from_unit_range
from vit_jax.data.sources import open_training

pytestmark = pytest.mark.slow  # Trains or runs models for seconds.


def test_inputs_are_the_first_batch_as_augmented_in_step_1(quickstart):
    folder = quickstart / "finetune"
    config = workdir.read_config(folder)[""]
    source, size = open_training(config.data), config.data.image_size
    sampler = loader.make_sampler(source, config.seed)
    images = Page(folder / "report.html").images()[:12]
    assert len(images) == 12
    for position, image in enumerate(images):
        index = sampler[position]
        random = np.random.default_rng((config.seed, 0, index))
        recipe = TrainRecipe(config.data, (size, size))
        expected = from_unit_range(recipe(source[index]["image"], random))
        np.testing.assert_array_equal(image, expected)
