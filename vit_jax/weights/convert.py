"""Converts weights between formats, accounts for every tensor, and verifies the outputs."""

import dataclasses
import os
import pathlib
import re

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax.checkpoints import checkpoint, layout, local_copy
from vit_jax.config.schema import Data, Init
from vit_jax.data import packaged
from vit_jax.data.object_store import is_url
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import trees
from vit_jax.models.registry import BitResNet, ViT, build, create_model, param_shapes
from vit_jax.text import print_line
from vit_jax.weights import download, load, save, write_timm, writer
from vit_jax.weights.finite import require_finite, require_finite_params
from vit_jax.weights.lazy_weights import with_fixed_positions
from vit_jax.weights.losses import list_losses
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.model_card import model_card
from vit_jax.weights.tensor_table import tensor_table

ORBAX = "orbax"
FILE_FORMATS = (*writer.FILE_FORMATS, ORBAX)
TOLERANCE = 1e-5  # Largest difference of outputs, relative to the largest output.
FOLDED_TOLERANCE = 2e-4  # The same where a scale is folded, which rounds the kernels.


def convert(
    source: str,
    destination: str,
    *,
    file_format: str | None = None,
    name: str | None = None,
    image_size: int | None = None,
    pool: str | None = None,
    no_head: bool = False,
    overwrite: bool = False,
) -> str:
    """Writes weights in another format, prints a table of all tensors, and verifies the result.

    The new file or folder gets its name after it has been read back: its parameters, and the
    features and logits of both models on a photo, are compared.

    Args:
      source: location of weights, as `load.load` takes it.
      destination: a `.npz`, a `.safetensors`, or a folder; also the URL of one in a bucket.
      file_format: one of FILE_FORMATS; None infers it from the suffix, and means huggingface for
        a folder.
      name: model name that the weights must have the shape of, such as `vit_b16`.
      image_size: side in pixels to resize the position embeddings to.
      pool: 'gap' drops the class token.
      no_head: omits the head and pre_logits.
      overwrite: permits replacing a file.

    Returns:
      The closing line, starting with "done:".

    Raises:
      ConfigError: the destination exists or does not fit the format, or the format does not
        support the model.
      CheckpointError: the source is not readable, or the outputs differ.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image_size is {image_size}; expected at least 1.")
    with local_copy.destination(destination, overwrite) as path:
        file_format = _check_file_format(file_format, path)
        _refuse_source(path, source)
        _check_destination(path, destination, overwrite)
        changes = {"image_size": image_size, "pool": pool, "no_head": no_head}
        counts = _convert(source, path, file_format, name, overwrite, **changes)
    shown = destination if is_url(destination) else path
    return f"done: {counts} destination={shown}"


def _convert(
    source: str,
    path: pathlib.Path,
    file_format: str,
    name: str | None,
    overwrite: bool,
    *,
    image_size: int | None,
    pool: str | None,
    no_head: bool,
) -> str:
    """Writes and verifies the file or folder `path`; returns counts and differences as text."""
    loaded = load.load(source)
    if loaded.weights_file:  # The source may be its folder.
        _refuse_source(path, loaded.weights_file.path)
    if name is not None:
        _check_model_name(name, loaded)
    model = _build_target(loaded.model, file_format, image_size, pool, no_head)
    permissions = Init(new_head=no_head, resize=image_size is not None, drop_token=pool is not None)
    weights, has_new_positions = loaded.weights, _has_new_positions(loaded.model, model)
    if has_new_positions:
        weights = with_fixed_positions(weights, loaded.model, model.grid)
    plan = load.plan_adaptation(weights, model, permissions)
    shapes = param_shapes(model)
    export = None if file_format == ORBAX else writer.plan_export(file_format, model, shapes)
    params = load.read_params(weights, plan)
    require_finite_params(params, source)
    metadata = _target_metadata(loaded, model)
    losses = list_losses(file_format, model, metadata)
    card = model_card(
        model,
        metadata,
        file_format=file_format,
        name=path.name,
        source=source,
        num_params=trees.count(params),
        losses=losses,
    )
    outputs = _photo_outputs(model, params)
    is_folded = bool(plan.folded or plan.folds_head_norm)
    has_same_outputs = image_size is None and pool is None and not no_head
    if (is_folded or has_new_positions) and has_same_outputs:
        outputs = _photo_outputs(*_source_model_and_params(loaded))
    photo = {f"{kind} of a photo": array for kind, array in outputs.items()}
    require_finite(photo, params, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with save.aside(path) as new:
        notes = _write(new, model, params, metadata, export, card)
        save.check_class_names_beside(path, new, overwrite)
        tolerance = FOLDED_TOLERANCE if is_folded else TOLERANCE
        compared = _verify(new, params, outputs, export, tolerance)
    notes += [f"different in {line}" for line in losses]
    if file_format == "safetensors":
        notes.append(f"timm: model = {write_timm.constructor(model)}")
    for line in (*tensor_table(loaded, plan, export, shapes), *plan.notes, *notes):
        print_line(line)
    return f"tensors={len(shapes)} parameters={trees.count(params):,} {' '.join(compared)}"


def _target_metadata(loaded: load.LoadedModel, model: ViT | BitResNet) -> WeightsMetadata:
    """Metadata of the new file: model options, class names and preprocessing."""
    keeps_names = loaded.has_class_names and model.num_classes
    classes = loaded.classes if keeps_names else None
    source = loaded.weights.metadata
    metadata = save.metadata_of(model, loaded.recipe, classes, source.assumed)
    return dataclasses.replace(metadata, family=source.family)


def _write(
    path: pathlib.Path,
    model: ViT | BitResNet,
    params: dict,
    metadata: WeightsMetadata,
    export: writer.ExportPlan | None,
    card: str,
) -> list[str]:
    """Writes the new file or folder; returns notes for the user."""
    if export is None:
        _write_orbax(path, model, params, metadata)
        return []
    return writer.write(export, path, model, trees.flatten(params), metadata, card)


def _verify(
    path: pathlib.Path,
    params: dict,
    outputs: dict[str, np.ndarray],
    export: writer.ExportPlan | None,
    tolerance: float,
) -> list[str]:
    """Reads the new file, and compares outputs and parameters; returns `_verify_outputs`."""
    written = save.read_back(path)
    compared = _verify_outputs(path, written, outputs, tolerance)
    save.verify_params(path, written, trees.flatten(params), export)
    return compared


def _verify_outputs(
    path: pathlib.Path,
    written: load.LoadedModel,
    expected: dict[str, np.ndarray],
    tolerance: float,
) -> list[str]:
    """Returns the largest difference and the largest value of each output, as text.

    Raises:
      CheckpointError: outputs differ by more than the tolerance.
    """
    outputs, lines = _photo_outputs(written.model, written.params()), []
    for kind, array in expected.items():
        difference = float(np.abs(outputs[kind] - array).max())
        largest = float(np.abs(array).max())
        if not difference <= tolerance * largest:
            raise CheckpointError(
                f"{path}: outputs on a photo differ from those of the source by up to "
                f"{difference:.2e} ({kind}); expected at most {tolerance * largest:.2e} (the "
                f"largest output is {largest:.2e}). No file was created."
            )
        suffix = "_feature" if kind == "features" and len(expected) > 1 else ""
        lines.append(f"{kind}_difference={difference:.1e} largest{suffix}={largest:.3g}")
    return lines


def _check_file_format(file_format: str | None, path: pathlib.Path) -> str:
    """The file format; raises ConfigError if it does not fit the suffix of the destination."""
    by_suffix = {suffix: name for name, suffix in save.SUFFIXES.items()}.get(path.suffix)
    if not (file_format or by_suffix) and re.fullmatch(r"\.[a-z_]{2,}", path.suffix):
        raise ConfigError(
            f"{path}: unknown suffix {path.suffix}; expected .npz or .safetensors. For a folder "
            "of this name give --format=huggingface or --format=orbax."
        )
    file_format = file_format or by_suffix or "huggingface"
    if by_suffix != (file_format if file_format in save.SUFFIXES else None):
        suffix = save.SUFFIXES.get(file_format)
        expected = f"a file that ends in {suffix}" if suffix else "a folder"
        raise ConfigError(f"{path}: --format={file_format} needs {expected} as the destination.")
    return file_format


def _refuse_source(path: pathlib.Path, source: str | pathlib.Path) -> None:
    if path.is_file() and os.path.exists(source) and path.samefile(source):
        raise ConfigError(f"{path} is the source; choose another file.")


def _check_destination(path: pathlib.Path, destination: str, overwrite: bool) -> None:
    """Raises ConfigError if writing would replace something that it may not replace."""
    is_remote = download.is_url(destination) and not is_url(destination)
    if is_remote or not path.name:
        raise ConfigError(
            f"{destination} is not the name of a new file or folder on a disk or in a bucket "
            "(gs://, s3://)."
        )
    if path.suffix in save.SUFFIXES.values():
        save.check_file(path, overwrite)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists; name a new folder.")


def _build_target(
    source: ViT | BitResNet,
    file_format: str,
    image_size: int | None,
    pool: str | None,
    no_head: bool,
) -> ViT | BitResNet:
    """The model of the new file: the source with the requested changes, in float32."""
    config, changes = source.config, {"dtype": "float32"}
    if pool is not None:
        if not isinstance(source, ViT) or pool != "gap":
            raise ConfigError(
                f"--pool={pool} and {config.name}: only --pool=gap is supported, and only for "
                "Vision Transformers."
            )
        changes["pool"] = pool
    if no_head and isinstance(source, ViT):
        changes["pre_logits"] = False
        changes["pool"] = changes.get("pool", config.pool).replace("token_gap", "token")
    if file_format != ORBAX and config.head_norm:
        changes["head_norm"] = False  # Folded into the head.
    is_fixed = isinstance(source, ViT) and config.pos_embed.startswith("sincos")
    if is_fixed and config.pos_embed_at == "stem" and file_format in ("safetensors", "huggingface"):
        changes["pos_embed"] = "learned"  # timm and transformers store positions as a tensor.
    if file_format == "npz" and config.layer_scale is not None:
        changes["layer_scale"] = None  # The official code has none; folded, outputs are the same.
    return build(
        dataclasses.replace(config, **changes),
        num_classes=0 if no_head else source.num_classes,
        image_size=image_size or source.image_size,
    )


def _has_new_positions(source: ViT | BitResNet, target: ViT | BitResNet) -> bool:
    """Returns True if fixed positions are written as learned ones."""
    return source.config.pos_embed != target.config.pos_embed


def _check_model_name(name: str, loaded: load.LoadedModel) -> None:
    expected, model = create_model(name, num_classes=0), loaded.model
    fields = ("size", "stem", "patch_size") if isinstance(expected, ViT) else ("units", "width")
    for field in fields:
        found, wanted = getattr(model, field, None), getattr(expected, field)
        if found != wanted:
            raise CheckpointError(
                f"{loaded.weights.where}: {field} is {found}; --model={name} has {wanted}."
            )


def _photo_outputs(model: ViT | BitResNet, params: dict) -> dict[str, np.ndarray]:
    """Logits and features of the model on a packaged photo."""
    pixels = EvalRecipe.from_data(Data(), model.image_size)(packaged.photos()[0])[None]
    headless = build(model.config, num_classes=0, image_size=model.image_size)
    models = {"logits": model} if model.num_classes else {}
    models |= {"features": headless}

    def apply(params: dict, pixels: np.ndarray) -> dict:
        return {kind: m.apply({"params": params}, pixels) for kind, m in models.items()}

    outputs = jax.jit(apply)(params, pixels)
    return {kind: np.asarray(outputs[kind]) for kind in models}


def _source_model_and_params(loaded: load.LoadedModel) -> tuple[ViT | BitResNet, dict]:
    """The source's own model in float32, with LayerScale, and its parameters."""
    model = loaded.model
    config = dataclasses.replace(model.config, dtype="float32")
    sizes = {"num_classes": model.num_classes, "image_size": model.image_size}
    return build(config, **sizes), loaded.params()


def _write_orbax(
    path: pathlib.Path, model: ViT | BitResNet, params: dict, metadata: WeightsMetadata
) -> None:
    config = config_lib.base_config()
    config.steps = 1  # A config needs a length, though nothing is trained.
    config.model.update(dataclasses.asdict(model.config))
    config.data.update(image_size=model.image_size)
    config.data.update(eval_crop=metadata.crop, crop_fraction=metadata.crop_fraction)
    config.data.update(eval_side=metadata.crop_side, resample=metadata.resample)
    stages = config_lib.check(config, is_stored=True)
    names = metadata.classes or tuple(f"class {k}" for k in range(model.num_classes))
    meta = {"config": config_lib.to_dict(stages), "classes": list(names)}
    meta |= {"has_class_names": metadata.classes is not None, "is_converted": True}
    meta |= {"assumed": list(metadata.assumed or ()), "family": metadata.family}
    folder = checkpoint.Checkpoints(path / layout.FOLDER)
    folder.save(0, {"params": jax.device_put(params)}, data={}, meta=meta)
    folder.close()
