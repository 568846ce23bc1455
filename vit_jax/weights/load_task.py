"""Loads the task of a run, or of a published masked autoencoder, with its whole model."""

import pathlib
import re

from vit_jax.config.schema import Init, Task
from vit_jax.models.mae_vit import MaeViT
from vit_jax.tasks import mae
from vit_jax.tasks import registry as task_registry
from vit_jax.tasks.registry import Objective
from vit_jax.weights import load
from vit_jax.weights.lazy_weights import LazyWeights
from vit_jax.weights.reader import WeightsFile, open_weights_file
from vit_jax.weights.weights_folder import read_json_object

# Of all published decoders; the options are those of transformers, with its defaults.
DECODER_OPTIONS = {"decoder_num_attention_heads": 16, "norm_pix_loss": False}


def load_objective(where: str | pathlib.Path) -> tuple[Objective, LazyWeights] | None:
    """Returns a task with its whole model, and all parameters; None for weights without a task.

    `load` leaves out what the task alone uses, such as a decoder.

    Raises:
      CheckpointError: there are no readable weights, or a parameter of the task is missing.
    """
    loaded = load.load(where)
    if loaded.config:
        model = task_registry.build_model(loaded.config, num_classes=len(loaded.classes))
        task = task_registry.make_task(loaded.config.task, model)
    elif loaded.weights_file and _has_decoder(loaded.weights_file):
        task = _masked_autoencoder(loaded.weights_file, loaded.model)
    else:
        return None
    weights = load.open_weights(where, task.model)
    load.plan_adaptation(weights, task.model, Init())  # Raises if a parameter is missing.
    return task, weights


def _has_decoder(file: WeightsFile) -> bool:
    return any(name.endswith("decoder_embed.weight") for name in file.ignored)


def _masked_autoencoder(file: WeightsFile, encoder) -> mae.MaskedAutoencoder:
    """Returns the task of a published file with a decoder."""
    config_path, options = file.path.parent / "config.json", dict(DECODER_OPTIONS)
    if config_path.is_file():
        given = read_json_object(config_path)
        options |= {name: given[name] for name in options if name in given}
    heads = options["decoder_num_attention_heads"]
    shapes = open_weights_file(file.path, file.metadata, decoder_heads=heads).shapes
    layers = {
        match[0] for name in shapes if (match := re.match(r"Decoder/encoderblock_\d+/", name))
    }
    section = Task(
        name="mae",
        normalize_targets=options["norm_pix_loss"],
        decoder_layers=len(layers),
        decoder_size=shapes["decoder_embed/kernel"][1],
        decoder_heads=heads,
    )
    num_patches = encoder.grid[0] * encoder.grid[1]
    model = MaeViT.of(
        encoder.clone(num_classes=0),
        mae.num_kept(num_patches, section.mask_ratio),
        num_layers=section.decoder_layers,
        hidden_size=section.decoder_size,
        num_heads=section.decoder_heads,
    )
    return mae.MaskedAutoencoder(section, model)
