"""Writes what a model makes of the images of a split, for other tools."""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.checkpoints import workdir
from vit_jax.data.record_files import whole_file
from vit_jax.distributed.progress import Progress
from vit_jax.errors import ConfigError
from vit_jax.evaluation import scoring, setup
from vit_jax.evaluation.scoring import scored_batches

NPZ, RECORDS = ".npz", ".array_record"


def features(
    where: str, overrides: Mapping[str, str], out: str, *, layer: str, half: bool = False
) -> str:
    """Writes the features of every example of a split once; returns the closing line.

    An `.npz` holds `features` (N D, or N T D of tokens), `labels` N, `names` N and `classes`. In an
    `.array_record`, for what is larger than memory, record i is the raw bytes of example i, and
    FILE.json beside it has shape, dtype, labels, names and classes.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      overrides: `data.KEY` and `batch_size`, as texts.
      layer: one of `evaluators.features.LAYERS`.
      half: float16 in place of float32.
    """
    path = pathlib.Path(out)
    if path.suffix not in (NPZ, RECORDS):
        raise ConfigError(f"--out={out}: choose a name that ends in {NPZ} or {RECORDS}.")
    if path.exists() or not path.parent.is_dir():
        words = "exists already" if path.exists() else f"there is no folder {path.parent}"
        raise ConfigError(f"--out={out}: {words}.")
    seen = setup.prepare(where, overrides, "features")
    extract = scoring.make_extract(seen.model, seen.mesh, layer)
    split = seen.split()
    source, progress = seen.open(split), Progress(seconds_between=10)
    dtype = np.dtype("float16" if half else "float32")
    batches = scored_batches(
        extract,
        seen.params,
        source,
        seen.recipe,
        show=lambda done: progress.show(f"{done}/{len(source)} examples"),
        **seen.options,
    )
    about = {
        "checkpoint": seen.loaded.weights.where,
        "layer": layer,
        "split": split,
        "classes": list(source.classes),
        "names": [source.name(i) for i in range(len(source))],
    }
    write = _write_npz if path.suffix == NPZ else _write_records
    shape = write(path, batches, dtype, about)
    words = " x ".join(map(str, shape))
    return f"wrote {path}: {layer} {words} {dtype} n={shape[0]}/{len(source)}"


def _write_npz(path: pathlib.Path, batches: Iterator[dict], dtype, about: dict) -> tuple:
    """Writes the file whole or not at all; returns the shape of the features."""
    found, labels = [], []
    for batch in batches:
        found.append(batch["features"].astype(dtype))
        labels.append(batch["label"])
    whole = np.concatenate(found)
    texts = {name: np.array(value) for name, value in about.items()}
    temporary = path.with_name(f".{path.name}.tmp.npz")
    try:
        np.savez(temporary, features=whole, labels=np.concatenate(labels), **texts)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return whole.shape


def _write_records(path: pathlib.Path, batches: Iterator[dict], dtype, about: dict) -> tuple:
    """The same, as one record after the other."""
    labels, shape = [], ()
    with whole_file(path) as write:
        for batch in batches:
            shape = batch["features"].shape[1:]
            labels += batch["label"].tolist()
            for values in batch["features"].astype(dtype):
                write(values.tobytes())
        form = {"dtype": str(dtype), "shape": list(shape), "labels": labels}
        workdir.write_json(path.with_name(f"{path.name}.json"), form | about)
    return len(labels), *shape
