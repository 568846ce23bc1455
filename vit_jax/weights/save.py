"""Saves parameters to a weights file, which gets its name after it has been read back."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vit_jax.atomic_io import write_aside
from vit_jax.config.fields import expand_home
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError, listed
from vit_jax.models import trees
from vit_jax.models.registry import BitResNet, ViT, param_shapes
from vit_jax.text import print_line
from vit_jax.weights import load, writer
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.finite import require_finite_params
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.model_card import CARD_START, model_card
from vit_jax.weights.tensor_layouts import CLS, POSITIONS

SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors"}  # File format -> suffix of its files.


def save_params(
    path: str | pathlib.Path,
    model: ViT | BitResNet,
    params: dict,
    classes: Sequence[str] | None = None,
    *,
    recipe: EvalRecipe | None = None,
) -> None:
    """Saves parameters with the options of the model, class names and preprocessing.

    `load` and every command read the file without further options, and compute the same outputs.
    A model card is written beside it. The new file is read back and compared, and then replaces a
    file of the same name.

    Args:
      path: file that ends in `.npz` (names of the official code) or `.safetensors` (timm's names).
      model: the model of the parameters.
      params: nested dictionaries of arrays, which are stored in float32.
      classes: class names in the order of the outputs.
      recipe: preprocessing of the images, such as `load(...).recipe`. The default is that of
        `preprocess`.

    Raises:
      ConfigError: the path has another suffix, the format does not support the model, or there is
        not one class name for each output.
      CheckpointError: the parameters are not finite, or not those of the model.
    """
    path = pathlib.Path(expand_home(str(path)))
    file_format = {suffix: name for name, suffix in SUFFIXES.items()}.get(path.suffix)
    if file_format is None:
        raise ConfigError(f"{path}: unknown suffix; expected .npz or .safetensors.")
    check_file(path, overwrite=True)
    if classes is not None and len(classes) != model.num_classes:
        raise ConfigError(
            f"{path}: found {len(classes)} class names for a head of {model.num_classes} classes."
        )
    plan = _plan(path, file_format, model)
    arrays = {name: np.asarray(array, np.float32) for name, array in trees.flatten(params).items()}
    _check_shapes(arrays, param_shapes(model), path)
    require_finite_params(arrays, str(path))
    metadata = metadata_of(model, recipe or EvalRecipe.official(model.image_size), classes)
    count = trees.count(arrays)
    card = model_card(model, metadata, file_format=file_format, name=path.name, num_params=count)
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as new:
        notes = writer.write(plan, new, model, arrays, metadata, card)
        check_class_names_beside(path, new, overwrite=True)
        verify_params(new, read_back(new), arrays, plan)
    for note in notes:
        print_line(f"{path}: {note}")


def _plan(path: pathlib.Path, file_format: str, model: ViT | BitResNet) -> writer.ExportPlan:
    """Returns the plan of the stored tensors; the error of a model that only .npz has says so."""
    shapes = param_shapes(model)
    try:
        return writer.plan_export(file_format, model, shapes)
    except ConfigError as error:
        hint = ""
        with contextlib.suppress(ConfigError):
            writer.plan_export("npz", model, shapes)
            hint = f" Save it as {path.with_suffix('.npz').name}."
        raise ConfigError(f"{path}: {error}{hint}") from error


def _check_shapes(arrays: Mapping, shapes: Mapping[str, tuple], path: pathlib.Path) -> None:
    """Raises CheckpointError unless the arrays are the parameters of the model."""
    found = {name: array.shape for name, array in arrays.items()}
    lines = [
        f"{name} is {found.get(name, 'missing')}, expected {shapes.get(name, 'no such parameter')}"
        for name in sorted(found.keys() | shapes.keys(), key=lambda name: (name in shapes, name))
        if found.get(name) != shapes.get(name)
    ]
    if lines:
        raise CheckpointError(
            f"{path}: params does not fit the model: {listed(lines, writer.MAX_LISTED)}."
        )


def metadata_of(
    model: ViT | BitResNet,
    recipe: EvalRecipe,
    classes: Sequence[str] | None,
    assumed: tuple[str, ...] | None = None,
) -> WeightsMetadata:
    """Returns the metadata of a new file: model options, class names and preprocessing.

    Args:
      model: the model of the parameters.
      recipe: preprocessing of the images.
      classes: class names in the order of the outputs.
      assumed: options that the source of the parameters did not contain.
    """
    return metadata_lib.from_model(model).with_defaults(
        WeightsMetadata(
            classes=None if classes is None else tuple(classes),
            crop=recipe.crop,
            crop_fraction=recipe.crop_fraction,
            crop_side=recipe.side,
            resample=recipe.resample,
            assumed=assumed,
        )
    )


def check_file(path: pathlib.Path, overwrite: bool) -> None:
    """Raises ConfigError if writing the file would replace something that it may not replace."""
    card = writer.card_path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; expected a file.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; name a new file, or give --overwrite.")
    if card.exists() and not card.read_text(encoding="utf-8", errors="replace").startswith(
        CARD_START
    ):
        raise ConfigError(f"{card} exists and would be overwritten by the model card; rename it.")


def check_class_names_beside(path: pathlib.Path, new: pathlib.Path, overwrite: bool) -> None:
    """Raises ConfigError if a file beside `path` would be overwritten or give wrong class names."""
    old, names = (file.with_suffix(writer.CLASSES_SUFFIX) for file in (path, new))
    if path.suffix in SUFFIXES.values() and old.exists() and not (overwrite and names.exists()):
        raise ConfigError(
            f"{old} exists: its lines would name the classes of {path.name}; remove it."
        )


@contextlib.contextmanager
def aside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where to write; errors in the block name `path`."""
    with write_aside(path, is_folder=path.suffix not in SUFFIXES.values()) as new:
        try:
            yield new
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(new), str(path))) from error


def read_back(path: pathlib.Path) -> load.LoadedModel:
    """Returns what was written; does not print assumed options, which have been printed."""
    with contextlib.redirect_stderr(io.StringIO()):
        return load.load(str(path))


def verify_params(
    path: pathlib.Path,
    written: load.LoadedModel,
    expected: Mapping[str, np.ndarray],
    export: writer.ExportPlan | None,
) -> None:
    """Raises CheckpointError unless what was written has the bits of the parameters.

    Outputs alone would not show the layers behind a head or a LayerScale of zeros.

    Args:
      path: the new file or folder.
      written: what was read back from it.
      expected: arrays by slash name.
      export: plan of the stored tensors; None for a checkpoint.
    """
    arrays = trees.flatten(written.params())
    changed = {CLS, POSITIONS} if export and export.folds_cls else set()
    for name, array in expected.items():
        if name not in changed and not np.array_equal(arrays[name], array, equal_nan=True):
            raise CheckpointError(
                f"{path}: {name} has other values when it is read back. No file was created."
            )
