"""Training inputs of the first step of a run."""

from collections.abc import Iterator

import numpy as np

from vit_jax.config import registry
from vit_jax.config.schema import Config
from vit_jax.data import loader
from vit_jax.data.preprocess import from_unit_range
from vit_jax.data.sources import open_training
from vit_jax.tasks import registry as task_registry

NUM_INPUTS = 12


def first_training_inputs(config: Config) -> list[tuple[str, np.ndarray]]:
    """Returns title and pixels H W 3 uint8 of the first training inputs, augmented as in step 1.

    The title is the class, or else the name of the image. Of an example with several crops, each
    crop is an input.

    Raises:
      DataError: the data cannot be read.
      ConfigError: the config names a user-defined data set, step or task that is not trusted.
    """
    data = config.data
    registry.require_trusted(registry.user_names(data, "config.data"))
    source = open_training(data)
    model = task_registry.build_model(config, num_classes=1)
    rows = loader.TrainRows(
        source,
        task_registry.make_train_recipe(config, model),
        loader.make_sampler(source, config.seed, data.repeats),
        loader.HostShard.from_hosts(config.batch_size),
        config.seed,
        start=0,
        stop=1,
        on_bad_image=data.on_bad_image,
    )
    inputs: list[tuple[str, np.ndarray]] = []
    for i in range(min(NUM_INPUTS, len(rows))):
        crops = list(_crops(rows[i], source))
        if i and len(inputs) + len(crops) > NUM_INPUTS:
            break
        inputs += crops
    return inputs


def _crops(row: dict, source) -> Iterator[tuple[str, np.ndarray]]:
    """Yields title and pixels of each crop of a training example."""
    title = source.classes[row["label"]] if source.classes else source.name(int(row["id"]))
    if row["image"].ndim == 3:
        yield title, from_unit_range(row["image"])
        return
    for column, kind in (("image", "global"), ("local", "local")):
        for k, crop in enumerate(row.get(column, ()), 1):
            yield f"{title}, {kind} crop {k}", from_unit_range(crop)
