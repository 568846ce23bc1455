"""Weights of one ecosystem -> another's, every tensor accounted for and read back."""

import dataclasses
import pathlib
import re
import shutil

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax import trees
from vit_jax.checkpoints import checkpoint
from vit_jax.data import packaged
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models.registry import BitResNet, ViT, build, create_model, param_shapes
from vit_jax.weights import adapt, download, load, metadata, writer
from vit_jax.weights.metadata import Facts
from vit_jax.weights.model_card import CARD_START, model_card
from vit_jax.weights.tensor_layouts import CLS, POSITIONS

ORBAX = "orbax"
FORMATS = (*writer.FORMATS, ORBAX)
TOLERANCE = 1e-5  # Of the largest output, where every number stays as it is.
FOLDED_TOLERANCE = 2e-4  # Where LayerScale is multiplied into kernels, and rounded there.


def convert(
    source: str,
    destination: str,
    *,
    format: str | None = None,
    name: str | None = None,
    image_size: int | None = None,
    pool: str | None = None,
    no_head: bool = False,
    overwrite: bool = False,
) -> str:
    """Writes the weights behind `source` in another form; returns the closing line.

    Args:
      source: anything that holds weights, as `load.load` takes it.
      destination: a `.npz`, a `.safetensors`, or a folder.
      format: of FORMATS; by default the suffix tells, and a folder is Hugging Face's.
      name: a model name that the weights must fit, such as `vit_b16`.
      image_size: side to resize position embeddings to.
      pool: 'gap' drops the class token.
      no_head: leaves out the head, and pre_logits with it.
      overwrite: permission to replace a file.

    The table of all tensors is printed. Then what was written is read back, and the outputs
    of both are compared on a real photo. Raises CheckpointError where they differ.
    """
    path = pathlib.Path(destination)
    format = _format(format, path)
    _refuse_taken(path, source, destination, overwrite)
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image_size is {image_size}; it must be at least 1.")
    loaded = load.load(source)
    if name is not None:
        _refuse_other_shape(name, loaded)
    section, model = _changed(loaded, format, image_size, pool, no_head)
    plan = load.plan_for(
        loaded.weights,
        model,
        new_head=no_head,
        resize=image_size is not None,
        drop_token=pool is not None,
    )
    shapes = param_shapes(model)
    written = None if format == ORBAX else writer.plan_export(format, model, shapes)
    params = load.read_params(loaded.weights, plan)
    said = _said(loaded, model)
    card = model_card(section, model, said, source, trees.count(params))
    before = _outputs(model, params)
    if plan.folded and image_size is None and pool is None and not no_head:
        before = _outputs(*_unfolded(loaded))
    if not np.isfinite(before).all():
        raise CheckpointError(f"{source}: its outputs on a photo are not finite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if written is None:
        _write_orbax(path, section, model, params, said)
        notes = []
    else:
        notes = writer.write(written, path, model, trees.flatten(params), said, card)
    for line in (*table(loaded, plan, written, shapes), *plan.notes, *notes):
        print(line)
    worst, largest = _read_back(path, before, FOLDED_TOLERANCE if plan.folded else TOLERANCE)
    kind = "logits" if model.num_classes else "features"
    return (
        f"done: tensors={len(shapes)} parameters={trees.count(params):,} "
        f"{kind}_difference={worst:.1e} largest={largest:.3g} destination={path}"
    )


def _said(loaded: load.Loaded, model: ViT | BitResNet) -> Facts:
    """What the new file says of its model, classes and preprocessing."""
    keeps_names = loaded.has_class_names and model.num_classes
    recipe = loaded.recipe
    return metadata.of_model(model).over(
        Facts(
            classes=loaded.classes if keeps_names else None,
            crop=recipe.crop,
            crop_fraction=recipe.crop_fraction,
            resample=recipe.resample,
        )
    )


def _read_back(path: pathlib.Path, before: np.ndarray, tolerance: float) -> tuple[float, float]:
    """The largest difference from the source's outputs, and the largest of those.

    Removes what was written and raises CheckpointError where they differ by more.
    """
    again = load.load(str(path))
    after = _outputs(again.model, again.params())
    worst, largest = float(np.abs(after - before).max()), float(np.abs(before).max())
    if not worst <= tolerance * largest:
        _remove(path)
        raise CheckpointError(
            f"{path}, now removed: read back, its outputs on a photo differ by {worst:.2e} from "
            f"the source's, of which the largest is {largest:.2e}."
        )
    return worst, largest


def _format(format: str | None, path: pathlib.Path) -> str:
    by_suffix = {".npz": "npz", ".safetensors": "safetensors"}.get(path.suffix)
    if not (format or by_suffix) and re.fullmatch(r"\.[a-z_]{2,}", path.suffix):
        raise ConfigError(
            f"{path} ends in none of .npz and .safetensors; for a folder of that name give "
            "--format=huggingface or --format=orbax."
        )
    format = format or by_suffix or "huggingface"
    if by_suffix not in (None, format) or (by_suffix is None and format in ("npz", "safetensors")):
        wanted = {"npz": ".npz", "safetensors": ".safetensors"}.get(format)
        raise ConfigError(
            f"{path} is no name for --format={format}: "
            + (f"it ends in {wanted}." if wanted else "name a folder.")
        )
    return format


def _refuse_taken(path: pathlib.Path, source: str, destination: str, overwrite: bool) -> None:
    """Raises ConfigError where something else would be written over."""
    if download.is_url(destination) or not path.name:
        raise ConfigError(f"{destination} is no name for a new file or folder here.")
    if path.suffix in (".npz", ".safetensors"):
        card = writer.card_path(path)
        if path.exists() and (path.is_dir() or path.resolve() == pathlib.Path(source).resolve()):
            raise ConfigError(f"{path} is the source, or a folder; name another file.")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; name a new file, or give --overwrite.")
        if card.exists() and not card.read_text(errors="replace").startswith(CARD_START):
            raise ConfigError(f"{card} is where the model card goes, and is none; rename it.")
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists; name a new folder.")


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
        writer.card_path(path).unlink(missing_ok=True)


def _changed(loaded: load.Loaded, format: str, image_size, pool, no_head):
    """The section and the model of the new file: the old ones but for what was asked."""
    model, changes = loaded.model, {"dtype": "float32"}
    if pool is not None:
        if not isinstance(model, ViT) or pool != "gap":
            raise ConfigError(f"--pool={pool}: only gap can be made, of a class token's weights.")
        changes["pool"] = pool
    if no_head and isinstance(model, ViT):
        changes["pre_logits"] = False
        changes["pool"] = changes.get("pool", model.config.pool).replace("token_gap", "token")
    if format == "npz" and loaded.section.layer_scale is not None:
        changes["layer_scale"] = None  # The official code has none; folded, the outputs stay.
    section = dataclasses.replace(loaded.section, **changes)
    return section, build(
        section,
        num_classes=0 if no_head else model.num_classes,
        image_size=image_size or model.image_size,
    )


def _refuse_other_shape(name: str, loaded: load.Loaded) -> None:
    wanted, found = create_model(name, num_classes=0), loaded.model
    kinds = ("size", "stem", "patch_size") if isinstance(wanted, ViT) else ("units", "width")
    for kind in kinds:
        there, here = getattr(found, kind, None), getattr(wanted, kind)
        if there != here:
            raise CheckpointError(
                f"{loaded.weights.where}: its {kind} is {there}; that of {name} is {here}."
            )


def table(loaded: load.Loaded, plan: adapt.Plan, written, shapes: dict) -> list[str]:
    """One line for each parameter: its name there, its name here, its shape, its change."""
    found = loaded.foreign
    sources = {name: name for name in loaded.weights.shapes}
    if found:
        sources = {ours: theirs for theirs, row in found.rows.items() for ours in row.ours}
    targets = {name: name for name in shapes}
    if written:
        targets = {ours: theirs for theirs, row in written.rows.items() for ours in row.ours}
    lines = [("source", "destination", "shape", "change")]
    for name, target in targets.items():
        changes = [
            word
            for word, holds in (
                ("renamed", sources.get(name, target) != target),
                ("resized", plan.old_grid != plan.new_grid and "/posembed_" in name),
                ("class token's place dropped", plan.drops_cls and "/posembed_" in name),
                ("class token's place zeros", found and found.pads_cls and name == POSITIONS),
                ("its place folded in", written and written.folds_cls and name == CLS),
                ("LayerScale folded in", name in plan.folded),
                ("zeros", name in plan.zeros),
            )
            if holds
        ]
        line = (sources.get(name, "-"), target, _by(shapes[name]), ", ".join(changes) or "same")
        lines.append(line)
    for name in plan.dropped:
        change = "folded" if name in plan.folded.values() else "dropped"
        lines.append((sources[name], "-", _by(loaded.weights.shapes[name]), change))
    for name in found.left_out if found else ():
        lines.append((name, "-", "-", "left out: no weights of the model"))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, (*widths, 0))).rstrip()
        for line in lines
    ]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _outputs(model, params: dict) -> np.ndarray:
    """What the model makes of a real photo."""
    pixels = EvalRecipe(model.image_size)(packaged.photos()[0])[None]
    return np.asarray(jax.jit(model.apply)({"params": params}, pixels))


def _unfolded(loaded: load.Loaded):
    """The source's own model, in float32, and its parameters."""
    section = dataclasses.replace(loaded.section, dtype="float32")
    sizes = {"num_classes": loaded.model.num_classes, "image_size": loaded.model.image_size}
    return build(section, **sizes), loaded.params()


def _write_orbax(path: pathlib.Path, section, model, params: dict, said: Facts) -> None:
    config = config_lib.base_config()
    config.steps = 1  # Nothing trains; the door wants one length.
    config.model.update(dataclasses.asdict(section))
    config.data.update(image_size=model.image_size)
    config.data.update(
        eval_crop=said.crop, crop_fraction=said.crop_fraction, resample=said.resample
    )
    stages = config_lib.check(config)
    names = said.classes or tuple(f"class {k}" for k in range(model.num_classes))
    meta = {"config": config_lib.to_dict(stages), "classes": list(names)}
    meta |= {"has_class_names": said.classes is not None, "is_converted": True}
    folder = checkpoint.Checkpoints(path / checkpoint.FOLDER)
    folder.save(0, {"params": jax.device_put(params)}, data={}, meta=meta)
    folder.close()
