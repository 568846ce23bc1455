"""Draws the paper's figures of what a model has learnt, from any weights."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from vit_jax import load, metrics, subject
from vit_jax.data.images import Encoded
from vit_jax.data.sources import sample_photos
from vit_jax.errors import ConfigError, DataError
from vit_jax.figures import (
    attention_distance,
    attention_heads,
    attention_rollout,
    filters,
    inside,
    position_similarity,
    style,
)
from vit_jax.models.vit import patchify

NUM_PAIRS = 3  # Of Figure 6.
NUM_IMAGES = 128  # That Figure 11 averages over (appendix D.7), where there are as many.
NUM_SELECTED = 16  # Of Figure 14.
NUM_ROWS, NUM_PATCHES = 8, 8  # Filters, and the patches that answer most to each.
HELD = 2**29  # Bytes of attention weights held at once.


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the attention of a model says of some images."""

    distances: np.ndarray  # L h, in pixels.
    masks: np.ndarray  # B r c, of the first NUM_SELECTED images.
    heads: np.ndarray  # h r c, of the first image in one layer.


def figures(
    where: str,
    out: str,
    *,
    files: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    theme: str = "light",
    block: int | None = None,
    beside: Sequence[str] = (),
) -> str:
    """Writes figures 6, 7, 10, 11 and 14, `heads` and `patches` into `out`, as PNG and SVG.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      files: images to look at; without, those of the run's split, and for weights without data
        two photos that come with scikit-learn.
      overrides: `data.KEY` and `batch_size`, as texts.
      theme: 'light' or 'dark'.
      block: the layer whose heads are shown, from 0; None for the last.
      beside: more weights, whose position embeddings Figure 10 shows, too.

    Returns the closing line.
    """
    overrides = overrides or {}
    loaded = load.load(where)
    inside.refuse_without_attention(loaded.model, where)
    num_layers = loaded.model.size.num_layers
    block = num_layers - 1 if block is None else block
    if not 0 <= block < num_layers:
        raise ConfigError(f"--block is {block}; the layers are 0 to {num_layers - 1}.")
    if files and overrides:
        raise ConfigError(
            f"--config.{next(iter(overrides))} amends the run's data; --image={files[0]} takes its "
            "place: give one of the two."
        )
    has_data = bool(overrides) or (not files and loaded.config is not None)
    if has_data:
        whole = subject.prepare(where, overrides, "figures")
        model, params, images = whole.model, whole.params, _of_split(whole)
    else:
        model, params = loaded.model, jax.device_put(loaded.params())
        photos = [_read(file) for file in files] or sample_photos()
        images = np.stack([loaded.recipe(photo) for photo in photos[:NUM_IMAGES]])
    seen = _look(model, params, images, block)
    folder, shown = pathlib.Path(out), (images + 1) / 2
    with style.theme(theme):
        made = _inside(model, params, shown, {loaded.section.name: seen.distances})
        if beside:
            made["figure10"] = position_similarity.plot(_positions([where, *beside]))
        made |= {
            "figure6": attention_rollout.plot(shown[:NUM_PAIRS], seen.masks[:NUM_PAIRS]),
            "figure14": attention_rollout.plot(shown[:NUM_SELECTED], seen.masks),
            "heads": attention_heads.plot(shown[0], seen.heads, f"layer {block + 1}"),
        }
        for title, figure in made.items():
            style.save(figure, folder, title)
    return f"done: figures={','.join(sorted(made))} images={len(images)} out={out}"


def _inside(model, params: dict, shown: np.ndarray, distances: dict) -> dict:
    """Figures 7, 10 and 11, and the patches that filters answer to."""
    components = filters.principal_components(inside.filters(model, params))
    table = inside.positions(model, params)
    parts = style.make_figure(13.5 if table is not None else 9.0, 4.2)
    panels = iter(parts.subfigures(1, 3 if table is not None else 2))
    made = {"figure7": parts, "figure11": attention_distance.plot(distances)}
    filters.plot(components, next(panels))
    if table is not None:
        title = "Position embedding similarity"
        cosines = {title: position_similarity.similarity(table, model.grid)}
        position_similarity.plot(cosines, next(panels))
        made["figure10"] = position_similarity.plot(cosines)
    attention_distance.plot(distances, next(panels))
    if model.stem is None:
        P = model.patch_size
        patches = np.concatenate([np.array(patchify(image[None], P))[0] for image in shown])
        patches = patches.reshape(-1, P, P, 3)
        rows = components[:NUM_ROWS]
        best = filters.top_patches(patches, rows, NUM_PATCHES)
        made["patches"] = filters.plot_patches(rows, patches[best])
    return made


def _positions(places: Sequence[str]) -> dict[str, np.ndarray]:
    """Cosines of the position embeddings of several models, by their folders or files."""
    found = {}
    for where, title in zip(places, _titles(places), strict=True):
        loaded = load.load(where)
        inside.refuse_without_attention(loaded.model, where)
        table = inside.positions(loaded.model, loaded.params())
        if table is None:
            raise ConfigError(
                f"{where} adds nothing to its patches: its pos_embed is "
                f"{loaded.model.layers.pos_embed!r}."
            )
        found[title] = position_similarity.similarity(table, loaded.model.grid)
    return found


def _titles(places: Sequence[str]) -> list[str]:
    """The last parts of some paths, as many as tell them apart."""
    parts = [pathlib.PurePath(where).parts for where in places]
    for count in range(1, max(map(len, parts)) + 1):
        titles = ["/".join(each[-count:]) for each in parts]
        if len(set(titles)) == len(titles):
            return titles
    raise ConfigError(f"--beside={places[-1]} is there twice.")


def _look(model, params: dict, images: np.ndarray, block: int) -> Seen:
    """What attention says, with no more weights at once than HELD bytes."""
    L, h = model.size.num_layers, model.size.num_heads
    T = int(np.prod(model.grid)) + model.has_cls + model.num_registers
    size = min(max(1, HELD // (4 * L * h * T * T)), len(images))
    attention, progress = inside.make_attention(model), metrics.Progress(seconds_between=10)
    total, masks, heads = 0.0, [], None
    for first in range(0, len(images), size):
        part = images[first : first + size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        layers = [np.array(A)[: len(part)] for A in attention(params, padded)]
        distances = [
            attention_distance.mean_distance(A, model.grid, model.patch_pixels) for A in layers
        ]
        total = total + len(part) * np.stack(distances)
        if first < NUM_SELECTED:
            joint = attention_rollout.rollout(layers)
            masks.append(attention_rollout.of_output(joint, model.grid, model.has_cls))
        if heads is None:
            heads = attention_heads.maps(layers[block][0], model.grid, model.has_cls)
        progress.show(f"{first + len(part)}/{len(images)} images")
    return Seen(total / len(images), np.concatenate(masks)[:NUM_SELECTED], heads)


def _of_split(whole: subject.Subject) -> np.ndarray:
    """Images B H W 3 of the split, evenly spaced, as the model takes them."""
    source = whole.open(whole.split())
    if not len(source):
        raise DataError("the split is empty; there is nothing to look at.")
    places = np.unique(np.linspace(0, len(source) - 1, NUM_IMAGES).astype(int))
    return np.stack([whole.recipe(source[int(i)]["image"]) for i in places])


def _read(file: str) -> Encoded:
    try:
        return Encoded(pathlib.Path(file).read_bytes(), file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}.") from error
