"""Training inputs in a page against the data pipeline of step 1."""

import numpy as np
import pytest

from tests.support.written_pages import Page
from vit_jax.checkpoints import workdir
from vit_jax.config.schema import Config, Data, Model, Task
from vit_jax.data import loader
from vit_jax.data.preprocess import TrainRecipe, from_unit_range
from vit_jax.data.sources import open_training
from vit_jax.report.inputs import first_training_inputs

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


def test_inputs_of_an_example_with_several_crops_are_all_its_crops():
    data = Data(image_size=32, local_crops=2, local_size=16, num_classes=3, num_examples=8)
    config = Config(
        steps=1, batch_size=8, model=Model(name="vit_ti16"), task=Task(name="dino"), data=data
    )
    inputs = first_training_inputs(config)
    sampler = loader.make_sampler(open_training(data), config.seed)
    crops = ("global crop 1", "global crop 2", "local crop 1", "local crop 2")
    titles = [f"class {sampler[k] % 3}, {crop}" for k in range(3) for crop in crops]
    assert [title for title, _ in inputs] == titles  # Three examples: twelve inputs.
    assert [image.shape for _, image in inputs] == 3 * (2 * [(32, 32, 3)] + 2 * [(16, 16, 3)])
