"""Labels images with a checkpoint."""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from vit_jax.data.decode import SUFFIXES, Encoded
from vit_jax.errors import ConfigError, DataError
from vit_jax.weights import load

BATCH_SIZE = 32


def predict(
    where: str,
    images: Sequence[str],
    *,
    top: int = 5,
    classes: str | None = None,
    as_json: bool = False,
) -> int:
    """Prints the best classes of every image; returns how many could not be read.

    Args:
      where: a workdir, checkpoint or `.npz`.
      images: files, and folders that are searched for files.
      top: classes printed for each image.
      classes: a file with one class name a line, in the order of the head.

    A line is path, class, probability, separated by tabs; or one JSON object per image.
    """
    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1.")
    loaded = load.load(where, _read_classes(classes))
    loaded.refuse_without_head()
    files = list(_files(images))
    params = jax.device_put(loaded.params())
    model, top = loaded.model, min(top, len(loaded.classes))

    @jax.jit
    def best(params, batch):
        return jax.lax.top_k(jax.nn.softmax(model.apply({"params": params}, batch)), top)

    num_broken = 0
    size = min(BATCH_SIZE, len(files))
    for first in range(0, len(files), size):
        paths, pixels = [], []
        for path in files[first : first + size]:
            try:
                pixels.append(loaded.recipe(Encoded(path.read_bytes(), str(path))))
                paths.append(path)
            except (DataError, OSError) as error:
                num_broken += 1
                words = error.strerror if isinstance(error, OSError) else error
                print(f"{path}: {words}" if words is not error else error, file=sys.stderr)
        if not paths:
            continue
        # Always the same shape, so that one program serves all batches.
        padding = [np.zeros_like(pixels[0])] * (size - len(pixels))
        probabilities, indices = jax.device_get(best(params, np.stack(pixels + padding)))
        for path, values, labels in zip(paths, probabilities, indices, strict=False):
            _print(path, [(loaded.classes[k], float(p)) for k, p in zip(labels, values)], as_json)
    return num_broken


def _print(path: pathlib.Path, found: list[tuple[str, float]], as_json: bool) -> None:
    if as_json:
        labels = [{"class": title, "probability": round(p, 6)} for title, p in found]
        print(json.dumps({"path": str(path), "predictions": labels}), flush=True)
    else:
        for title, probability in found:
            print(f"{_cell(str(path))}\t{_cell(title)}\t{probability:.4f}", flush=True)


def _cell(text: str) -> str:
    """Text that ends no cell of a tab-separated table, and that no terminal obeys."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _read_classes(file: str | None) -> tuple[str, ...] | None:
    if file is None:
        return None
    try:
        return tuple(line.strip() for line in open(file, encoding="utf-8") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes={file} cannot be read: {error}.") from error


def _files(images: Sequence[str]) -> Iterator[pathlib.Path]:
    """The files named, and those found in folders, sorted; DataError where there are none."""
    for name in images:
        path = pathlib.Path(name)
        if not path.is_dir():
            yield path  # A missing one is told of when it is read.
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not found:
            raise DataError(f"{name}: no images ({', '.join(SUFFIXES)}) in this folder.")
        yield from found
