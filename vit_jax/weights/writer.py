"""Our parameters -> the files of other ecosystems, with class names and preprocessing."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.atomic_io import write_atomically
from vit_jax.errors import ConfigError
from vit_jax.models.pixel_stats import PIXEL_STATS
from vit_jax.models.registry import BitResNet, ViT
from vit_jax.weights import formats
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.metadata import Facts
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, Row, to_theirs

FORMATS = ("npz", "safetensors", "huggingface")
MAX_LISTED = 5
UNOFFICIAL = ("registers", "_ln/scale", "MAPHead_0", "posembed_1", "x_embedding", "relative")
TIMM_EPS = 1e-6
CLASSES_SUFFIX = ".classes.txt"  # Of a file for names that fit into no other.
MAX_METADATA = {"npz": 65_000, "safetensors": 900_000}  # Bytes of JSON that fit into a file.


@dataclasses.dataclass(frozen=True)
class Export:
    """What will be written: made from a model alone, before any array is read."""

    format: str
    dialect: formats.Dialect
    rows: dict[str, Row]  # By name in the new file.
    folds_cls: bool  # timm's models with registers give no position to the class token.


def plan_export(format: str, model: ViT | BitResNet, shapes: Mapping[str, tuple]) -> Export:
    """How a model's parameters are written.

    Raises ConfigError for a model that the ecosystem has no place for.
    """
    name, root = _dialect(format, model)
    dialect = formats.DIALECTS[name]
    rows, unknown = formats.rows_for(dialect, shapes)
    if unknown:
        more = f" and {len(unknown) - MAX_LISTED} more" if len(unknown) > MAX_LISTED else ""
        raise ConfigError(
            f"{dialect.name} has no place for {', '.join(unknown[:MAX_LISTED])}{more}."
        )
    folds_cls = format == "safetensors" and {"registers", CLS, POSITIONS} <= set(shapes)
    named = {}
    for row in rows:
        is_beside = row.theirs.startswith("classifier")  # Hugging Face's heads have no root.
        named[row.theirs if is_beside else root + row.theirs] = row
    return Export(format, dialect, named, folds_cls)


def _dialect(format: str, model: ViT | BitResNet) -> tuple[str, str]:
    """The dialect of a format for a model, and the root that its names get."""
    if isinstance(model, BitResNet):
        root = "bit." if model.num_classes else ""
        return {
            "npz": (formats.BIT_NPZ, ""),
            "safetensors": (formats.TIMM_BIT, ""),
            "huggingface": (formats.HF_BIT, root),
        }[format]
    if format == "npz":
        return formats.OFFICIAL, ""
    if format == "safetensors":
        _refuse_for_timm(model)
        return (formats.TIMM_STEM if model.stem and not model.stem.units else formats.TIMM), ""
    _refuse_for_huggingface(model)
    if model.config.layer_scale is None:
        return formats.HF_VIT, "vit." if model.num_classes else ""
    kind = "dinov2_with_registers." if model.config.registers else "dinov2."
    return formats.HF_DINO, kind if model.num_classes else ""


_WITHOUT_HEAD = "--no_head leaves it and the head out."


def _refuse_for_timm(model: ViT) -> None:
    config = model.config
    for has_it, what in (
        (config.pre_logits, f"pre_logits; {_WITHOUT_HEAD}"),
        (config.pool == "token_gap", "pool='token_gap'"),
        (config.pos_embed not in ("learned", "none"), f"pos_embed={config.pos_embed!r}"),
        (config.pos_embed_at != "stem", f"pos_embed_at={config.pos_embed_at!r}"),
        (config.qk_norm, "LayerNorm of queries and keys without a bias"),
    ):
        if has_it:
            raise ConfigError(f"timm's models have no place for {what.rstrip('.')}.")


def _refuse_for_huggingface(model: ViT) -> None:
    config = model.config
    is_dino = config.layer_scale is not None
    pool = "token_gap" if is_dino and model.num_classes else "token"
    for has_it, what in (
        (model.stem is not None, "a ResNet before the encoder"),
        (config.qk_norm, "LayerNorm of queries and keys"),
        (config.pos_embed != "learned", f"pos_embed={config.pos_embed!r}"),
        (config.pos_embed_at != "stem", f"pos_embed_at={config.pos_embed_at!r}"),
        (config.registers and not is_dino, "registers without LayerScale"),
        (config.pool != pool, f"pool={config.pool!r} where its own has {pool!r}"),
        (is_dino and config.pre_logits, "pre_logits in a DINOv2"),
        (
            config.pre_logits and model.num_classes,
            f"a head after pre_logits; {_WITHOUT_HEAD}",
        ),
        (
            is_dino and model.size.mlp_size % model.size.hidden_size,
            "an MLP of no whole number of widths",
        ),
    ):
        if has_it:
            raise ConfigError(f"Hugging Face's models have no place for {what.rstrip('.')}.")


def tensors(export: Export, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and numbers of every tensor of the new file, in its order."""
    for name, row in export.rows.items():
        arrays = [np.asarray(params[ours]) for ours in row.ours]
        if export.folds_cls and row.ours == (CLS,):
            arrays = [arrays[0] + np.asarray(params[POSITIONS])[:, :1]]
        if export.folds_cls and row.ours == (POSITIONS,):
            arrays = [arrays[0][:, 1:]]
        yield name, to_theirs(row, arrays)


def write(
    export: Export,
    path: pathlib.Path,
    model: ViT | BitResNet,
    params: Mapping[str, np.ndarray],
    said: Facts,
    card: str,
) -> list[str]:
    """Writes a file or folder, whole or not at all, and a model card; returns what to know.

    Args:
      params: by slash name.
      said: classes and preprocessing; the rest is the model's.
    """
    said = metadata_lib.of_model(model).over(said)
    metadata, notes = metadata_lib.to_metadata(said), []
    if export.format == "huggingface":
        with _new_folder(path) as folder:
            _write_huggingface(export, folder, model, params, said)
            write_atomically(folder / "README.md", card)
        return notes
    is_too_long = len(json.dumps(metadata)) > MAX_METADATA[export.format]
    titles = metadata.pop("classes", ()) if is_too_long else ()
    if export.format == "npz":
        write_npz(path, tensors(export, params), metadata)
    else:
        write_safetensors(path, dict(tensors(export, params)), metadata)
    if titles:
        beside = path.with_suffix(CLASSES_SUFFIX)
        write_atomically(beside, "".join(f"{title}\n" for title in titles))
        notes.append(f"class names do not fit into {path.name}: they are in {beside}")
    strange = [name for name in params if any(part in name for part in UNOFFICIAL)]
    if export.format == "npz" and strange:
        notes.append(f"the official code has no place for {', '.join(strange[:MAX_LISTED])}")
    if export.format == "safetensors" and said.gelu == "tanh":
        notes.append("timm gives these outputs with create_model(..., act_layer='gelu_tanh')")
    if export.format == "safetensors" and said.norm_eps not in (None, TIMM_EPS):
        notes.append(f"timm's LayerNorms have epsilon {TIMM_EPS:g}, these {said.norm_eps:g}")
    write_atomically(card_path(path), card)
    return notes


def card_path(path: pathlib.Path) -> pathlib.Path:
    """Where the model card of a file goes."""
    return path.with_name(f"{path.name}.md")


@contextlib.contextmanager
def _new_folder(path: pathlib.Path):
    """A folder that appears under its name when it is complete."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists; name a new folder.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_huggingface(export: Export, folder: pathlib.Path, model, params, said: Facts) -> None:
    metadata = metadata_lib.to_metadata(said)
    if len(json.dumps(metadata)) > MAX_METADATA["safetensors"]:
        raise ConfigError(f"class names of more than {MAX_METADATA['safetensors']:,} bytes.")
    arrays = dict(tensors(export, params))
    if export.dialect.name == formats.HF_DINO:
        root = next(name for name in arrays if "cls_token" in name).removesuffix("cls_token")
        width = (1, model.size.hidden_size)
        arrays[f"{root}mask_token"] = np.zeros(width, np.float32)  # Its class expects one.
    write_safetensors(folder / "model.safetensors", arrays, metadata)
    for name, values in (
        ("config.json", huggingface_config(model, said)),
        ("preprocessor_config.json", huggingface_processor(model, said)),
    ):
        write_atomically(folder / name, json.dumps(values, indent=2) + "\n")


def huggingface_config(model: ViT | BitResNet, said: Facts) -> dict:
    """The config.json of a model."""
    names = said.classes or tuple(f"class {k}" for k in range(model.num_classes))
    labels = {
        "id2label": {str(k): title for k, title in enumerate(names)},
        "label2id": {title: k for k, title in enumerate(names)},
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
    own = {
        "architectures": [f"{name}{ending}"],
        "model_type": kind,
        "mlp_ratio": size.mlp_size // size.hidden_size,
        "use_swiglu_ffn": False,
        "layerscale_value": config.layer_scale,
    }
    return shared | registers | own


def huggingface_processor(model: ViT | BitResNet, said: Facts) -> dict:
    """The preprocessor_config.json of a model."""
    height, width = model.image_size
    mean, deviation = PIXEL_STATS[model.config.pixel_stats]
    resamples = {ours: pillow for pillow, ours in metadata_lib.PIL_RESAMPLES.items()}
    values = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(deviation),
        # Its bilinear is Pillow's, with antialiasing; TensorFlow's has no number there.
        "resample": resamples.get(said.resample, resamples["antialias"]),
    }
    if said.crop == "center" and height == width:
        short = round(height / (said.crop_fraction or 1))
        size = {"shortest_edge": short}
        crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
        return values | {"size": size, "image_processor_type": "BitImageProcessor"} | crop
    size = {"height": height, "width": width}
    return values | {"size": size, "image_processor_type": "ViTImageProcessor"}
