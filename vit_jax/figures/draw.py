"""Draws the paper's figures of what a model has learnt, from any weights."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from vit_jax import trees
from vit_jax.data import packaged
from vit_jax.data.decode import Encoded
from vit_jax.distributed.progress import Progress
from vit_jax.errors import CheckpointError, ConfigError, DataError, nearest
from vit_jax.evaluation import setup
from vit_jax.figures import attention as attention_lib
from vit_jax.figures import (
    attention_distance,
    attention_heads,
    attention_rollout,
    filters,
    position_similarity,
    style,
)
from vit_jax.models import titles
from vit_jax.models.registry import ViT
from vit_jax.models.vit import patchify
from vit_jax.weights import load

NUM_PAIRS = 3  # Of Figure 6.
NUM_IMAGES = 128  # That Figure 11 averages over (appendix D.7), where there are as many.
NUM_SELECTED = 16  # Of Figure 14.
NUM_ROWS, NUM_PATCHES = 8, 8  # Filters, and the patches that answer most to each.
HELD = 2**27  # Bytes of the attention weights of one layer.

Layers = Callable[[], Iterable[dict]]  # Gives the parameters of each layer in turn.


@dataclasses.dataclass(frozen=True)
class Examined:
    """A model, and the images that it looks at."""

    where: str
    model: ViT
    params: dict  # Without those of the layers, where `layers` gives them.
    layers: Layers | None
    images: np.ndarray  # B H W 3 in [-1, 1].


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
    only: Sequence[str] = (),
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
      only: names of the figures to draw; all of them, where there are none.

    Returns the closing line.
    """
    overrides = overrides or {}
    loaded = load.load(where)
    attention_lib.refuse_without_attention(loaded.model, where)
    num_layers = loaded.model.size.num_layers
    block = num_layers - 1 if block is None else block
    if not 0 <= block < num_layers:
        raise ConfigError(f"--block is {block}; the layers are 0 to {num_layers - 1}.")
    if len(files) > NUM_IMAGES:
        raise ConfigError(f"--image is there {len(files)} times; at most {NUM_IMAGES} are taken.")
    if files and overrides:
        raise ConfigError(
            f"--config.{next(iter(overrides))} amends the run's data; --image={files[0]} takes its "
            "place: give one of the two."
        )
    whole = _examined(where, loaded, files, overrides)
    title = titles.title_of(loaded.section, whole.model.image_size)
    drawings = _drawings(whole, title, block)
    if beside:
        found = _positions([where, *beside])
        drawings["figure10"] = lambda: position_similarity.plot(found)
    for name in only:
        if name not in drawings:
            raise ConfigError(
                f"--only={name}: no such figure of {where}; it has {', '.join(sorted(drawings))}."
                f"{nearest(name, drawings)}"
            )
    names = sorted(set(only or drawings))
    with style.theme(theme):
        drawn = {name: drawings[name]() for name in names}  # Damaged weights leave no file.
        for name, figure in drawn.items():
            style.save(figure, pathlib.Path(out), name)
    return f"done: figures={','.join(names)} images={len(whole.images)} out={out}"


def _examined(
    where: str, loaded: load.Loaded, files: Sequence[str], overrides: Mapping[str, str]
) -> Examined:
    if overrides or (not files and loaded.config is not None):
        whole = setup.prepare_setup(where, overrides, "figures")
        found = Examined(where, whole.model, whole.params, None, _of_split(whole))
    else:
        photos = [_read(file) for file in files] or packaged.photos()
        images = np.stack([loaded.recipe(photo) for photo in photos])
        found = Examined(where, loaded.model, *_in_parts(loaded), images)
    for name, array in trees.flatten(found.params).items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{where}: {name} holds values that are no numbers.")
    return found


def _in_parts(loaded: load.Loaded) -> tuple[dict, Layers | None]:
    """The parameters of a file but those of the layers, and what reads these, one at a time.

    A run's checkpoint is read as a whole.
    """
    if loaded.foreign is None:
        return jax.device_put(loaded.params()), None
    names = list(loaded.weights.shapes)

    def layers() -> Iterator[dict]:
        for i in range(loaded.model.size.num_layers):
            title = f"encoderblock_{i}"
            own = [name for name in names if name.startswith(f"Transformer/{title}/")]
            yield jax.device_put(loaded.params(own)["Transformer"][title])

    others = [name for name in names if not name.startswith("Transformer/encoderblock_")]
    return jax.device_put(loaded.params(others)), layers


def _drawings(whole: Examined, title: str, block: int) -> dict[str, Callable[[], style.Figure]]:
    """What draws each figure that there is of a model; what several need is found once."""
    model, params, shown = whole.model, whole.params, (whole.images + 1) / 2
    seen = functools.cache(lambda: _look(whole, block))
    components = functools.cache(
        lambda: filters.principal_components(attention_lib.filters(model, params))
    )
    table = attention_lib.positions(model, params)

    def figure7() -> style.Figure:
        parts = style.make_figure(13.5 if table is not None else 9.0, 4.2)
        left, *centre, right = parts.subfigures(1, 3 if table is not None else 2)
        filters.plot(components(), left)
        for panel in centre:
            position_similarity.plot(similarities(), panel)
        attention_distance.plot({title: seen().distances}, right)
        return parts

    def similarities() -> dict[str, np.ndarray]:
        return {"Position embedding similarity": position_similarity.similarity(table, model.grid)}

    def patches() -> style.Figure:
        P, rows = model.patch_size, components()[:NUM_ROWS]
        cut = np.concatenate([np.array(patchify(image[None], P))[0] for image in shown])
        cut = cut.reshape(-1, P, P, 3)
        return filters.plot_patches(rows, cut[filters.top_patches(cut, rows, NUM_PATCHES)])

    found = {
        "figure6": lambda: attention_rollout.plot(shown[:NUM_PAIRS], seen().masks[:NUM_PAIRS]),
        "figure7": figure7,
        "figure11": lambda: attention_distance.plot({title: seen().distances}),
        "figure14": lambda: attention_rollout.plot(shown[:NUM_SELECTED], seen().masks),
        "heads": lambda: attention_heads.plot(shown[0], seen().heads, f"layer {block + 1}"),
    }
    if table is not None:
        found["figure10"] = lambda: position_similarity.plot(similarities())
    if model.stem is None:
        found["patches"] = patches
    return found


def _positions(places: Sequence[str]) -> dict[str, np.ndarray]:
    """Cosines of the position embeddings of several models, by their folders or files."""
    found = {}
    for where, title in zip(places, _titles(places), strict=True):
        model, table = attention_lib.read_positions(where)
        attention_lib.refuse_without_attention(model, where)
        if table is None:
            raise ConfigError(
                f"{where} adds nothing to its patches: its pos_embed is {model.config.pos_embed!r}."
            )
        found[title] = position_similarity.similarity(table, model.grid)
    return found


def _titles(places: Sequence[str]) -> list[str]:
    """The last parts of some paths, as many as tell them apart."""
    parts = [pathlib.PurePath(where).parts for where in places]
    for count in range(1, max(map(len, parts)) + 1):
        titles = ["/".join(each[-count:]) for each in parts]
        if len(set(titles)) == len(titles):
            return titles
    raise ConfigError(f"--beside={places[-1]} is there twice.")


def _look(whole: Examined, block: int) -> Seen:
    """What attention says; the batches go through the layers together, and each is read once."""
    progress = Progress(seconds_between=10)
    model, images, walks = whole.model, whole.images, _walks(whole)
    distances, joints, heads = [], {}, None
    for layer in range(model.size.num_layers):
        total = 0.0
        for first, count, weights in walks:
            distance, mean, of_first = jax.device_get(next(weights))
            if not np.isfinite(distance).all():
                raise CheckpointError(
                    f"{whole.where}: the attention of layer {layer} is no number everywhere."
                )
            total = total + distance[:count].sum(axis=0)
            if mean is not None:
                joints[first] = attention_rollout.deeper(joints.get(first), mean[:count])
            if first == 0 and layer == block:
                heads = attention_heads.maps(of_first, model.grid, model.has_cls)
            progress.show(f"layer {layer + 1}: {first + count}/{len(images)} images")
        distances.append(total / len(images))
    masks = [
        attention_rollout.of_output(joint, model.grid, model.has_cls) for joint in joints.values()
    ]
    return Seen(np.stack(distances), np.concatenate(masks)[:NUM_SELECTED], heads)


def _walks(whole: Examined) -> list[tuple[int, int, Iterator[tuple]]]:
    """Batches of images: the first, how many, and what is told of each layer in turn.

    That is the distances B h, and of images that are shown the mean of the heads B 1 T T and all
    heads of the first h T T. A layer's weights take no more than HELD bytes.
    """
    model, images, layers = whole.model, whole.images, whole.layers
    T = int(np.prod(model.grid)) + model.has_cls + model.config.registers
    size = min(max(1, HELD // (4 * model.size.num_heads * T * T)), NUM_SELECTED, len(images))
    of_images = jax.vmap(
        lambda A: attention_distance.mean_distance(A[None], model.grid, model.patch_pixels)
    )
    of_shown = attention_lib.make_attention(
        model, lambda A: (of_images(A), A.mean(axis=1, keepdims=True), A[0])
    )
    of_others = attention_lib.make_attention(model, lambda A: (of_images(A), None, None))
    firsts = range(0, len(images), size)
    copies = _copies(layers(), len(firsts)) if layers else [None] * len(firsts)
    walks = []
    for first, own in zip(firsts, copies, strict=True):
        part = images[first : first + size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        attention = of_shown if first < NUM_SELECTED else of_others
        walks.append((first, len(part), attention(whole.params, padded, own)))
    return walks


def _copies(layers: Iterable[dict], count: int) -> list[Iterator[dict]]:
    """Iterators over the same layers; what all have had is let go, as `itertools.tee` does not."""
    layers, waiting = iter(layers), [collections.deque() for _ in range(count)]

    def copy(own: collections.deque) -> Iterator[dict]:
        while own or _fill(waiting, layers):
            yield own.popleft()

    return [copy(own) for own in waiting]


def _fill(waiting: Sequence[collections.deque], layers: Iterator[dict]) -> bool:
    """Gives the next layer to all; False after the last."""
    layer = next(layers, None)
    if layer is None:
        return False
    for each in waiting:
        each.append(layer)
    return True


def _of_split(whole: setup.EvaluationSetup) -> np.ndarray:
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
