"""Draws the paper's Figures 6, 7, 10, 11 and 14 for any weights, and reconstructions."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from vit_jax.data import packaged
from vit_jax.data.decode import as_image
from vit_jax.errors import ConfigError, DataError, nearest
from vit_jax.evaluation import setup
from vit_jax.figures import attention as attention_lib
from vit_jax.figures import (
    attention_distance,
    attention_heads,
    attention_rollout,
    filters,
    position_similarity,
    reconstruction,
    style,
)
from vit_jax.figures.attention_statistics import ReadLayers, compute_statistics
from vit_jax.models import titles
from vit_jax.models.registry import ViT
from vit_jax.models.vit import patchify
from vit_jax.weights import load
from vit_jax.weights.finite import require_finite_params

NUM_PAIRS = 3  # Images in Figure 6.
NUM_IMAGES = 128  # Images that Figure 11 averages over, if there are as many (appendix D.7).
NUM_SELECTED = 16  # Images in Figure 14.
NUM_RECONSTRUCTED = 6  # Images in `reconstruction`.
NUM_ROWS, NUM_PATCHES = 8, 8  # Filters in `patches`, and patches beside each.


@dataclasses.dataclass(frozen=True)
class FigureInputs:
    """A model and the images to apply it to.

    Attributes:
      where: name of the weights, for errors.
      model: a Vision Transformer or hybrid.
      params: its parameters; without those of the layers if `read_layers` is given.
      read_layers: function that reads the parameters of each layer, or None.
      images: B H W 3 in [-1, 1].
    """

    where: str
    model: ViT
    params: dict
    read_layers: ReadLayers | None
    images: np.ndarray


def draw_figures(
    where: str,
    out: str,
    *,
    files: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    theme: str = "light",
    block: int | None = None,
    beside: Sequence[str] = (),
    only: Sequence[str] = (),
) -> str:
    """Writes figures 6, 7, 10, 11 and 14, `heads` and `patches` as PNG and SVG.

    A run that predicts patches also has the figure `reconstruction`.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      out: folder to write into.
      files: image files. By default images of the run's split, and for weights without a run two
        photos of scikit-learn.
      overrides: `data.KEY` and `batch_size` of the run's config -> value as text.
      theme: 'light' or 'dark'.
      block: the layer to show the heads of, from 0; the last by default.
      beside: more weights whose position embeddings to show in Figure 10.
      only: names of the figures to write; all by default.

    Returns:
      The line to print at the end.

    Raises:
      ConfigError: an argument is not allowed, or the model has no attention.
      CheckpointError: the weights are damaged or not finite. Then no file is written.
    """
    overrides = overrides or {}
    loaded = load.load(where)
    attention_lib.require_attention(loaded.model, where)
    num_layers = loaded.model.size.num_layers
    block = num_layers - 1 if block is None else block
    if not 0 <= block < num_layers:
        raise ConfigError(f"--block is {block}; expected a layer from 0 to {num_layers - 1}.")
    if len(files) > NUM_IMAGES:
        raise ConfigError(f"--image is given {len(files)} times; expected at most {NUM_IMAGES}.")
    if files and overrides:
        raise ConfigError(
            f"--config.{next(iter(overrides))} and --image={files[0]} exclude each other: the "
            "first changes the run's data, the second replaces them. Give one of the two."
        )
    inputs = _load_inputs(where, loaded, files, overrides)
    title = titles.title_of(loaded.model.config, inputs.model.image_size)
    plot_functions = _plot_functions(inputs, title, block) | _plot_reconstruction(inputs)
    if beside:
        similarities = _read_similarities([where, *beside])
        plot_functions["figure10"] = lambda: position_similarity.plot_similarities(similarities)
    for name in only:
        if name == "figure10" and name not in plot_functions:
            raise _without_embeddings(where, loaded.model)
        if name not in plot_functions:
            raise ConfigError(
                f"--only={name}: {where} has no such figure; choose from "
                f"{', '.join(sorted(plot_functions))}.{nearest(name, plot_functions)}"
            )
    names = sorted(set(only or plot_functions))
    with style.theme(theme):
        figures = {name: plot_functions[name]() for name in names}  # All, before any is written.
        for name, figure in figures.items():
            style.save_figure(figure, pathlib.Path(out), name)
    return f"done: figures={','.join(names)} images={len(inputs.images)} out={out}"


def _load_inputs(
    where: str, loaded: load.LoadedModel, files: Sequence[str], overrides: Mapping[str, str]
) -> FigureInputs:
    if overrides or (not files and loaded.config is not None):
        prepared = setup.prepare_setup(where, overrides, "figures")
        images = _split_images(prepared)
        inputs = FigureInputs(where, prepared.model, prepared.params, None, images)
    else:
        photos = [as_image(file) for file in files] or packaged.photos()
        images = np.stack([loaded.recipe(photo) for photo in photos])
        inputs = FigureInputs(where, loaded.model, *_params_and_read_layers(loaded), images)
    require_finite_params(inputs.params, where)
    return inputs


def _split_images(prepared: setup.EvaluationSetup) -> np.ndarray:
    """Returns evenly spaced images B H W 3 of the split, in [-1, 1]."""
    source = prepared.open_scored(prepared.split())
    if not len(source):
        raise DataError("the split is empty; choose another by --config.data.split.")
    indices = np.unique(np.linspace(0, len(source) - 1, NUM_IMAGES).astype(int))
    return np.stack([prepared.recipe(source[int(i)]["image"]) for i in indices])


def _params_and_read_layers(loaded: load.LoadedModel) -> tuple[dict, ReadLayers | None]:
    """Returns the parameters outside the layers, and a function that reads a layer at a time.

    A run's checkpoint can be read as a whole only; then all parameters, and None.
    """
    if loaded.weights_file is None:
        return jax.device_put(loaded.params()), None
    names = list(loaded.weights.shapes)

    def read_layers() -> Iterator[dict]:
        for i in range(loaded.model.size.num_layers):
            layer = f"encoderblock_{i}"
            own = [name for name in names if name.startswith(f"Transformer/{layer}/")]
            params = loaded.params(own)
            require_finite_params(params, loaded.weights.where)
            yield jax.device_put(params["Transformer"][layer])

    others = [name for name in names if not name.startswith("Transformer/encoderblock_")]
    return jax.device_put(loaded.params(others)), read_layers


def _plot_functions(
    inputs: FigureInputs, title: str, block: int
) -> dict[str, Callable[[], style.Figure]]:
    """Returns name -> function that plots the figure, for all figures that the model has.

    Numbers that several figures need are computed once.
    """
    model, params = inputs.model, inputs.params
    images = (inputs.images + 1) / 2
    embeddings = attention_lib.position_embeddings(model, params)

    @functools.cache
    def statistics():
        return compute_statistics(
            model,
            params,
            inputs.images,
            layer=block,
            num_rollouts=NUM_SELECTED,
            read_layers=inputs.read_layers,
            where=inputs.where,
        )

    @functools.cache
    def components() -> np.ndarray:
        return filters.principal_components(attention_lib.pixel_filters(model, params))

    def similarities() -> dict[str, np.ndarray]:
        cosines = position_similarity.cosine_similarity(embeddings, model.grid)
        return {"Position embedding similarity": cosines}

    def plot_rollout(count: int) -> style.Figure:
        return attention_rollout.plot_rollout(images[:count], statistics().rollout_maps[:count])

    def plot_figure7() -> style.Figure:
        has_similarities = embeddings is not None
        figure = style.make_figure(13.5 if has_similarities else 9.0, 4.2)
        left, *centre, right = figure.subfigures(1, 3 if has_similarities else 2)
        filters.plot_filters(components(), left)
        for subfigure in centre:
            position_similarity.plot_similarities(similarities(), subfigure)
        attention_distance.plot_distances({title: statistics().distances}, right)
        return figure

    def plot_heads() -> style.Figure:
        return attention_heads.plot_heads(images[0], statistics().head_maps, f"layer {block + 1}")

    def plot_patches() -> style.Figure:
        P, rows = model.patch_size, components()[:NUM_ROWS]
        patches = np.concatenate([np.array(patchify(image[None], P))[0] for image in images])
        patches = patches.reshape(-1, P, P, 3)
        top = filters.top_patches(patches, rows, NUM_PATCHES)
        return filters.plot_top_patches(rows, patches[top])

    functions = {
        "figure6": lambda: plot_rollout(NUM_PAIRS),
        "figure7": plot_figure7,
        "figure11": lambda: attention_distance.plot_distances({title: statistics().distances}),
        "figure14": lambda: plot_rollout(NUM_SELECTED),
        "heads": plot_heads,
    }
    if embeddings is not None:
        functions["figure10"] = lambda: position_similarity.plot_similarities(similarities())
    if model.stem is None:  # The patches of a hybrid are features, not pixels.
        functions["patches"] = plot_patches
    return functions


def _plot_reconstruction(inputs: FigureInputs) -> dict[str, Callable[[], style.Figure]]:
    """Returns the function that plots `reconstruction`, or nothing for weights without a task."""
    found = reconstruction.find_objective(inputs.where)
    if not found or found[0].model.image_size != inputs.model.image_size:
        return {}  # A task is trained at its own size.

    def plot() -> style.Figure:
        images = inputs.images[:NUM_RECONSTRUCTED]
        return reconstruction.plot_reconstructions(reconstruction.reconstruct(*found, images))

    return {"reconstruction": plot}


def _read_similarities(weights: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns title -> similarities r c r c of the position embeddings of several models."""
    similarities = {}
    for where, title in zip(weights, _short_titles(weights), strict=True):
        model, embeddings = attention_lib.read_position_embeddings(where)
        attention_lib.require_attention(model, where)
        if embeddings is None:
            raise _without_embeddings(where, model)
        similarities[title] = position_similarity.cosine_similarity(embeddings, model.grid)
    return similarities


def _without_embeddings(where: str, model: ViT) -> ConfigError:
    return ConfigError(
        f"{where} has no position embeddings to show: its pos_embed is {model.config.pos_embed!r}."
    )


def _short_titles(paths: Sequence[str]) -> list[str]:
    """Returns the fewest last parts of each path that make all titles different."""
    parts = [pathlib.PurePath(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join(path[-count:]) for path in parts]
        if len(set(short)) == len(short):
            return short
    raise ConfigError(f"--beside={paths[-1]} is given twice; remove one.")
