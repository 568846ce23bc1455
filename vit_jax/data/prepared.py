"""Data sets that TFDS has prepared, read without TensorFlow."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from vit_jax.data.images import decode
from vit_jax.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS split, images still encoded, read without TensorFlow."""

    records: Sequence
    image_key: str
    label_key: str
    classes: tuple[str, ...]
    title: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = decode(record[self.image_key], self.name(index))
        return {"image": image, "label": int(record[self.label_key])}

    def fingerprint(self) -> int:
        return zlib.crc32(f"{self.title} {len(self)} {self.classes}".encode())

    @property
    def labels(self) -> np.ndarray:
        return np.array([int(record[self.label_key]) for record in self.records])

    def name(self, index: int) -> str:
        return f"{self.title}#{index}"


def open_tfds(dataset: str, split: str, dir: str) -> TfdsSource:
    """A TFDS split that was prepared as ArrayRecord; no TensorFlow is imported."""
    import tensorflow_datasets as tfds

    if not dataset:
        raise DataError("data.source=tfds needs data.dataset, such as cifar10.")
    try:
        builder = tfds.builder(dataset, data_dir=dir or None)
    except tfds.core.DatasetNotFoundError as error:
        hint = nearest(dataset, tfds.list_builders(with_community_datasets=False))
        raise DataError(f"data.dataset={dataset}: TFDS does not know it.{hint}") from error
    except Exception as error:  # TFDS raises its own and its builders' errors alike.
        words = " ".join(str(error).split())[:200]
        raise DataError(f"data.dataset={dataset}: TFDS cannot open it ({words}).") from error
    how = (
        f"prepare it once with `pip install 'vit-jax[tf]'` and `python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{dataset}', data_dir={dir or None!r}, "
        f"file_format='array_record').download_and_prepare()\"`."
    )
    if not builder.data_path.exists():
        raise DataError(f"data.dataset={dataset} is not under {builder.data_path}; {how}")
    known = sorted(builder.info.splits)
    if any(part.partition("[")[0] not in known for part in split.split("+")):
        raise DataError(f"data.dataset={dataset} has splits {known}, not {split!r}.")
    image_key, label_key = builder.info.supervised_keys or ("image", "label")
    features = dict(builder.info.features)
    names = getattr(features.get(label_key), "names", None)
    if names is None or image_key not in features:
        raise DataError(
            f"data.dataset={dataset} has no image with a class label; its features are "
            f"{sorted(features)}."
        )
    try:
        decoders = {image_key: tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:  # Files of a format without random access.
        words = " ".join(str(error).split())[:200]
        raise DataError(f"data.dataset={dataset} cannot be read ({words}); {how}") from error
    except Exception as error:  # A slice that makes no sense, or damaged files.
        words = " ".join(str(error).split())[:200]
        raise DataError(f"data.split={split} of {dataset} cannot be read ({words}).") from error
    return TfdsSource(
        records, image_key, label_key, tuple(names), f"{builder.info.full_name}/{split}"
    )
