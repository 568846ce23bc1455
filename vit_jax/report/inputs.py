"""Training inputs of the first step of a run."""

import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Config
from vit_jax.data import loader
from vit_jax.data.preprocess import TrainRecipe, from_unit_range
from vit_jax.data.sources import open_training

NUM_INPUTS = 12


def first_training_inputs(config: Config) -> list[tuple[str, np.ndarray]]:
    """Returns class and pixels H W 3 uint8 of the first training examples, augmented as in step 1.

    Raises:
      DataError: the data cannot be read.
      ConfigError: the config names a user-defined data set or step that is not trusted.
    """
    data = config.data
    registry.require_trusted(registry.user_names(data, "config.data"))
    source = open_training(data)
    rows = loader.TrainRows(
        source,
        TrainRecipe(data, data.size),
        loader.make_sampler(source, config.seed, data.repeats),
        loader.HostShard.from_hosts(config.batch_size),
        config.seed,
        start=0,
        stop=1,
        on_bad_image=data.on_bad_image,
    )
    examples = (rows[i] for i in range(min(NUM_INPUTS, len(rows))))
    return [(source.classes[row["label"]], from_unit_range(row["image"])) for row in examples]
