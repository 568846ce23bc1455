"""Features of images and of whole splits, as arrays and in files."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from vit_jax.atomic_io import open_atomically
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import url_of
from vit_jax.data import record_files
from vit_jax.data.overview import describe_splits
from vit_jax.distributed.progress import Progress
from vit_jax.errors import ConfigError
from vit_jax.evaluation import scoring, setup
from vit_jax.evaluation.features import make_extractor
from vit_jax.evaluation.predict import image_batches, list_images
from vit_jax.models.registry import ViT
from vit_jax.text import print_line
from vit_jax.weights import load
from vit_jax.weights.finite import require_finite

NPZ, RECORDS = ".npz", ".array_record"


def extract_features(
    where: str | pathlib.Path,
    images: Sequence | str | pathlib.Path,
    layers: Sequence[int | str] = ("pre_logits",),
) -> dict[int | str, np.ndarray]:
    """Returns features of images, one float32 array for each layer.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      images: as in `predict`.
      layers: numbers l of the tokens z_l after layer l (equation 3), 1 to L, B T D each; or
        names of `features.LAYERS`: 'pre_logits', the input of the head, B D; the encoder's
        output as 'tokens' B T D, class 'token' B D, or 'mean' of the patches B D.

    The T tokens are the class token and DeiT's distillation token, if any, the registers, then the
    patches row by row. The command `features` counts layers from 0: its `block_0` is layer 1 here.

    Raises ConfigError for a layer that the model does not have, DataError for an image that
    cannot be read, CheckpointError for features that are not finite.
    """
    loaded = load.load(where)
    params = jax.device_put(loaded.params())
    names = {layer: _layer_name(loaded.model, layer) for layer in layers}
    extractors = {
        layer: jax.jit(make_extractor(loaded.model, name)) for layer, name in names.items()
    }
    batches: dict[int | str, list] = {layer: [] for layer in layers}
    for pixels, count in image_batches(list_images(images), loaded.recipe):
        for layer, extract in extractors.items():
            features = extract(params, {"image": pixels})["features"]
            features = np.asarray(features, np.float32)[:count]
            require_finite({layer: features}, params, loaded.weights.where)
            batches[layer].append(features)
    return {layer: np.concatenate(parts) for layer, parts in batches.items()}


def _layer_name(model, layer: int | str) -> str:
    """Returns the name of a layer; raises ConfigError for a number that the model does not have."""
    if not isinstance(layer, int):
        return layer
    num_layers = model.size.num_layers if isinstance(model, ViT) else 0
    if not 1 <= layer <= num_layers:
        raise ConfigError(
            f"layers has {layer}; expected a number from 1 to {num_layers}, or a name."
            if num_layers
            else f"layers has {layer}; a ResNet has 'pre_logits' only."
        )
    return f"block_{layer - 1}"


def write_features(
    where: str,
    overrides: Mapping[str, object],
    out: str,
    *,
    layer: str = "pre_logits",
    half: bool = False,
    progress: Progress | None = None,
) -> str:
    """Writes the features of every example of a split; returns the closing line.

    An `.npz` holds `features` (N D, or N T D for tokens), `labels` N, `names` N and `classes`, and
    the texts `checkpoint`, `layer` and `split`.
    An `.array_record`, for features larger than memory, holds the raw bytes of example i as
    record i; FILE.json beside it has shape, dtype, labels, names and classes.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      overrides: values of config fields `data.KEY` and `batch_size`.
      out: path of the new file.
      layer: one of `features.LAYERS`.
      half: store float16 instead of float32.
      progress: shows the number of examples done.
    """
    path = pathlib.Path(out)
    if path.suffix not in (NPZ, RECORDS):
        raise ConfigError(f"--out={out}: expected a file name that ends in {NPZ} or {RECORDS}.")
    if path.exists() or not path.parent.is_dir():
        problem = "exists already" if path.exists() else f"there is no folder {path.parent}"
        raise ConfigError(f"--out={out}: {problem}.")
    prepared = setup.prepare_setup(where, overrides, "features")
    extract = scoring.make_extract(prepared.model, prepared.mesh, layer)
    split = prepared.split()
    source = prepared.open_scored(split)
    for line in describe_splits({split: source}):
        print_line(line)
    batches = scoring.scored_batches(
        extract,
        prepared.params,
        source,
        prepared.recipe,
        show=lambda done: progress and progress.show(f"{done}/{len(source)} examples"),
        **prepared.options,
    )
    about = {
        "checkpoint": url_of(prepared.loaded.weights.where),
        "layer": layer,
        "split": split,
        "classes": list(source.classes),
    }
    dtype = np.dtype("float16" if half else "float32")
    write = _write_npz if path.suffix == NPZ else _write_records
    shape = write(path, batches, source, dtype, about)
    size = " x ".join(map(str, shape))
    return f"wrote {path}: {layer} {size} {dtype} n={shape[0]}/{len(source)}"


def _as_dtype(features: np.ndarray, dtype) -> np.ndarray:
    """Returns the features in a dtype; raises ConfigError if they exceed its range."""
    with np.errstate(over="ignore"):
        converted = features.astype(dtype)
    if not np.isfinite(converted).all():
        raise ConfigError(
            f"--half: features reach {np.abs(features).max():.3g}, but {dtype} has at most "
            f"{np.finfo(dtype).max:.0f}; omit --half."
        )
    return converted


def _write_npz(path: pathlib.Path, batches: Iterator[dict], source, dtype, about: dict) -> tuple:
    """Writes the complete file or none; returns the shape of the features."""
    features, labels, names = [], [], []
    for batch in batches:
        features.append(_as_dtype(batch["features"], dtype))
        labels.append(batch["label"])
        names += [source.name(int(i)) for i in batch["index"]]
    stacked = np.concatenate(features)
    texts = {name: np.array(value, str) for name, value in (about | {"names": names}).items()}
    with open_atomically(path, stacked.nbytes) as file:
        np.savez(file, features=stacked, labels=np.concatenate(labels), **texts)
    return stacked.shape


def _write_records(
    path: pathlib.Path, batches: Iterator[dict], source, dtype, about: dict
) -> tuple:
    """Writes one record for each example; returns the shape of the features."""
    labels, names, shape = [], [], ()
    with record_files.write_atomically(path) as write:
        for batch in batches:
            shape = batch["features"].shape[1:]
            labels += batch["label"].tolist()
            names += [source.name(int(i)) for i in batch["index"]]
            for values in _as_dtype(batch["features"], dtype):
                write(values.tobytes())
        layout = {"dtype": str(dtype), "shape": list(shape), "labels": labels, "names": names}
        workdir.write_json(path.with_name(f"{path.name}.json"), layout | about)
    return len(labels), *shape
