"""Writes parameters in the formats of other projects, with class names and preprocessing."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.atomic_io import to_json, write_atomically
from vit_jax.config import registry
from vit_jax.errors import ConfigError, listed
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import formats, image_processor, write_timm
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, Row, params_to_tensor

FILE_FORMATS = ("npz", "safetensors", "huggingface")
MAX_LISTED = 5  # Names listed in one message.
# Parts of parameter names that the official code does not have.
UNOFFICIAL = ("registers", "_ln/scale", "MAPHead_0", "posembed_1", "x_embedding", "relative")
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
        is_head = row.tensor.startswith("classifier")  # Hugging Face's heads have no prefix.
        named_rows[row.tensor if is_head else prefix + row.tensor] = row
    return ExportPlan(file_format, format, named_rows, folds_cls)


def _format_and_prefix(file_format: str, model: ViT | BitResNet) -> tuple[str, str]:
    """The name of the format for a model, and the prefix of its tensor names."""
    if isinstance(model, BitResNet):
        prefix = "bit." if model.num_classes else ""
        return {
            "npz": (formats.BIT_NPZ, ""),
            "safetensors": (write_timm.format_name(model), ""),
            "huggingface": (formats.HF_BIT, prefix),
        }[file_format]
    if file_format == "npz":
        return formats.OFFICIAL, ""
    if file_format == "safetensors":
        return write_timm.format_name(model), ""
    _check_huggingface_support(model)
    if model.config.layer_scale is None:
        return formats.HF_VIT, "vit." if model.num_classes else ""
    prefix = "dinov2_with_registers." if model.config.registers else "dinov2."
    return formats.HF_DINO, prefix if model.num_classes else ""


def _check_huggingface_support(model: ViT) -> None:
    config = model.config
    is_dino = config.layer_scale is not None
    pool = "token_gap" if is_dino and model.num_classes else "token"
    for is_unsupported, option in (
        (model.stem is not None, "a ResNet before the encoder"),
        (config.qk_norm, "qk_norm"),
        (registry.is_user_defined(config.mlp), f"mlp={config.mlp!r}"),
        (config.pos_embed != "learned", f"pos_embed={config.pos_embed!r}"),
        (config.pos_embed_at != "stem", f"pos_embed_at={config.pos_embed_at!r}"),
        (config.registers and not is_dino, "registers without layer_scale"),
        (config.pool != pool, f"pool={config.pool!r} for this model, only pool={pool!r}"),
        (is_dino and config.pre_logits, "pre_logits in DINOv2"),
        (
            config.pre_logits and model.num_classes,
            f"a head after pre_logits{write_timm.NO_HEAD_HINT}",
        ),
        (
            is_dino and model.size.mlp_size % model.size.hidden_size,
            "an mlp_size that is not a multiple of hidden_size in DINOv2",
        ),
    ):
        if is_unsupported:
            raise ConfigError(f"Hugging Face does not support {option}.")


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
    arrays = dict(export_tensors(plan, params))
    if plan.format.name == formats.HF_DINO:
        prefix = next(name for name in arrays if "cls_token" in name).removesuffix("cls_token")
        shape = (1, model.size.hidden_size)
        arrays[f"{prefix}mask_token"] = np.zeros(shape, np.float32)  # Expected by the class.
    write_safetensors(folder / "model.safetensors", arrays, values)
    for name, contents in (
        ("config.json", huggingface_config(model, metadata)),
        ("preprocessor_config.json", huggingface_preprocessor(model, metadata)),
    ):
        write_atomically(folder / name, to_json(contents, indent=2) + "\n")


def huggingface_config(model: ViT | BitResNet, metadata: WeightsMetadata) -> dict:
    """Returns the contents of config.json for a model and its class names."""
    names = metadata.classes or tuple(f"class {k}" for k in range(model.num_classes))
    labels = {
        "id2label": {str(k): name for k, name in enumerate(names)},
        "label2id": {name: k for k, name in enumerate(names)},
    }
    ending = "ForImageClassification" if model.num_classes else "Model"
    shared = {"num_channels": 3, "torch_dtype": "float32"} | (labels if names else {})
    if isinstance(model, BitResNet):
        width = model.width
        return shared | {
            "architectures": [f"Bit{ending}"],
            "model_type": "bit",
            "layer_type": "preactivation",
            "depths": list(model.units),
            "embedding_size": 64 * width,
            "hidden_sizes": [256 * width * 2**b for b in range(4)],
            "num_groups": 32,
            "global_padding": None,
            "hidden_act": "relu",
        }
    size, config = model.size, model.config
    height, width = model.image_size
    shared |= {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "hidden_act": "gelu" if config.gelu == "erf" else "gelu_pytorch_tanh",
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": model.patch_size,
        "qkv_bias": True,
    }
    if config.layer_scale is None:
        kind = {"architectures": [f"ViT{ending}"], "model_type": "vit"}
        return shared | kind | {"intermediate_size": size.mlp_size}
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    name, kind = (
        ("Dinov2WithRegisters", "dinov2_with_registers") if registers else ("Dinov2", "dinov2")
    )
    dino = {
        "architectures": [f"{name}{ending}"],
        "model_type": kind,
        "mlp_ratio": size.mlp_size // size.hidden_size,
        "use_swiglu_ffn": False,
        "layerscale_value": config.layer_scale,
    }
    return shared | registers | dino


def huggingface_preprocessor(model: ViT | BitResNet, metadata: WeightsMetadata) -> dict:
    """Returns the contents of preprocessor_config.json for a model and its preprocessing."""
    mean, std = PIXEL_STATS[model.config.pixel_stats]
    values = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    return values | image_processor.to_huggingface(
        model.image_size,
        metadata.crop,
        metadata.crop_fraction,
        metadata.crop_side,
        metadata.resample,
    )
