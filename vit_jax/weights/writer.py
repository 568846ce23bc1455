"""Writes parameters in the formats of other projects, with class names and preprocessing."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.atomic_io import to_json, write_atomically
from vit_jax.errors import ConfigError, listed
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import formats, write_huggingface, write_timm
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, Row, params_to_tensor

FILE_FORMATS = ("npz", "safetensors", "huggingface")
MAX_LISTED = 5  # Names listed in one message.
# Parts of parameter names that the official code does not have.
UNOFFICIAL = ("registers", "_ln/scale", "MAPHead_0", "posembed_1", "x_embedding", "relative")
UNOFFICIAL += ("dist", "pre_norm", "fc_norm", "projection", "Dense_gate", "MlpBlock_0/LayerNorm_0")
CLASSES_SUFFIX = ".classes.txt"  # File for class names that do not fit into the weights file.
MAX_METADATA = {"npz": 65_000, "safetensors": 900_000}  # Bytes of JSON that fit into a file.


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """Plan of the stored tensors, made from the model before any array is read.

    Attributes:
      file_format: one of FILE_FORMATS.
      format: name table that is written.
      rows: row of the name table, by tensor name in the new file.
      folds_cls: the class token's position embedding is added to the class token, because
        timm's model has none.
    """

    file_format: str
    format: formats.Format
    rows: dict[str, Row]
    folds_cls: bool


def plan_export(
    file_format: str, model: ViT | BitResNet, shapes: Mapping[str, tuple]
) -> ExportPlan:
    """Returns how parameters of the given shapes are stored.

    Args:
      file_format: one of FILE_FORMATS.
      model: the model of the parameters.
      shapes: shape by parameter name.

    Raises:
      ConfigError: the format does not support the model.
    """
    name, prefix = _format_and_prefix(file_format, model)
    format = formats.FORMATS[name]
    rows, unknown = formats.rows_of_params(format, shapes)
    if unknown:
        names = listed(unknown, MAX_LISTED, ", ")
        raise ConfigError(f"the format {format.name} does not support the parameters {names}.")
    folds_cls = file_format == "safetensors" and write_timm.folds_cls(model)
    named_rows = {}
    for row in rows:
        is_bare = write_huggingface.unprefixed(row.tensor)
        named_rows[row.tensor if is_bare else prefix + row.tensor] = row
    return ExportPlan(file_format, format, named_rows, folds_cls)


def _format_and_prefix(file_format: str, model: ViT | BitResNet) -> tuple[str, str]:
    """The name of the format for a model, and the prefix of its tensor names."""
    if file_format == "huggingface":
        return write_huggingface.format_and_prefix(model)
    if file_format == "safetensors":
        return write_timm.format_name(model), ""
    return formats.BIT_NPZ if isinstance(model, BitResNet) else formats.OFFICIAL, ""


def export_tensors(
    plan: ExportPlan, params: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of every tensor of the new file, in its order.

    Args:
      plan: the plan made for the model.
      params: arrays by slash name.
    """
    for name, row in plan.rows.items():
        arrays = [np.asarray(params[param]) for param in row.params]
        if plan.folds_cls and row.params == (CLS,):
            arrays = [arrays[0] + np.asarray(params[POSITIONS])[:, :1]]
        if plan.folds_cls and row.params == (POSITIONS,):
            arrays = [arrays[0][:, 1:]]
        yield name, params_to_tensor(row, arrays)


def write(
    plan: ExportPlan,
    path: pathlib.Path,
    model: ViT | BitResNet,
    params: Mapping[str, np.ndarray],
    metadata: WeightsMetadata,
    card: str,
) -> list[str]:
    """Writes a file or the files of a folder, and a model card.

    Args:
      plan: the plan made for the model.
      path: the new file, or an empty folder for Hugging Face.
      model: the model of the parameters.
      params: arrays by slash name.
      metadata: class names and preprocessing; model options are taken from the model.
      card: text of the model card.

    Returns:
      Notes for the user, one line each.
    """
    metadata = metadata_lib.from_model(model).with_defaults(metadata)
    values, notes = metadata.known_fields(), []
    if plan.file_format == "huggingface":
        _write_huggingface(plan, path, model, params, metadata)
        write_atomically(path / "README.md", card)
        return notes
    is_too_long = len(to_json(values)) > MAX_METADATA[plan.file_format]
    class_names = values.pop("classes", ()) if is_too_long else ()
    if plan.file_format == "npz":
        num_bytes = sum(array.nbytes for array in params.values())
        write_npz(path, export_tensors(plan, params), values, num_bytes)
    else:
        write_safetensors(path, dict(export_tensors(plan, params)), values)
    if class_names:
        classes_path = path.with_suffix(CLASSES_SUFFIX)
        write_atomically(classes_path, "".join(f"{name}\n" for name in class_names))
        notes.append(f"class names are too long for {path.name}; they are in {classes_path.name}")
    unofficial = [name for name in params if any(part in name for part in UNOFFICIAL)]
    if plan.file_format == "npz" and unofficial:
        notes.append(f"the official code does not support {listed(unofficial, MAX_LISTED, ', ')}")
    write_atomically(card_path(path), card)
    return notes


def card_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the model card of a file."""
    return path.with_name(f"{path.name}.md")


def _write_huggingface(
    plan: ExportPlan,
    folder: pathlib.Path,
    model: ViT | BitResNet,
    params: Mapping[str, np.ndarray],
    metadata: WeightsMetadata,
) -> None:
    values = metadata.known_fields()
    num_bytes, limit = len(to_json(values)), MAX_METADATA["safetensors"]
    if num_bytes > limit:
        raise ConfigError(
            f"metadata and class names take {num_bytes:,} bytes; at most {limit:,} fit into "
            "model.safetensors."
        )
    arrays = dict(export_tensors(plan, params)) | write_huggingface.expected_tensors(model)
    write_safetensors(folder / "model.safetensors", arrays, values)
    for name, contents in (
        ("config.json", write_huggingface.config_json(model, metadata)),
        ("preprocessor_config.json", write_huggingface.preprocessor_json(model, metadata)),
    ):
        write_atomically(folder / name, to_json(contents, indent=2) + "\n")
