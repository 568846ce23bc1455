"""Loads model, parameters and preprocessing from WHERE, the location of weights.

WHERE is a workdir, one of its stages, a checkpoint step, a weights file or folder, a URL, or a
published name.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Iterator

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax.checkpoints import checkpoint, layout
from vit_jax.config import registry
from vit_jax.config.schema import Config, Data, Init
from vit_jax.config.schema import Model as ModelSection
from vit_jax.data.labels import check_new_names
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import encoders, trees
from vit_jax.models import registry as model_registry
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.registry import BitResNet, ViT, build, make_init, param_shapes
from vit_jax.tasks import registry as task_registry
from vit_jax.text import print_line
from vit_jax.weights import adapt, families, published
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.infer_model import infer_model_options
from vit_jax.weights.lazy_weights import LazyWeights, without_fixed_positions
from vit_jax.weights.location import is_weights_file, resolve, split_options
from vit_jax.weights.reader import WeightsFile, open_weights_file
from vit_jax.weights.writer import CLASSES_SUFFIX

Model = ViT | BitResNet
# Options that change outputs but no shapes.
NUMERICS = ("gelu", "norm_eps", "pixel_stats", "pos_embed", "pos_embed_at", "rope", "mlp")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, class names and preprocessing.

    Attributes:
      folder: workdir of the run; None for weights that are not from a run.
      weights: the parameters, not read yet.
      classes: class names; 'class 0', 'class 1', ... if there are none.
      has_class_names: False if `classes` are those placeholders.
      recipe: evaluation preprocessing.
      config: config of the run; None for weights that are not from a run.
      weights_file: the file of the weights; None for checkpoints of this package.
    """

    folder: pathlib.Path | None
    model: Model
    weights: LazyWeights
    classes: tuple[str, ...]
    has_class_names: bool
    recipe: EvalRecipe
    config: Config | None
    weights_file: WeightsFile | None

    def require_head(self) -> None:
        """Raises CheckpointError for a model without classes."""
        if self.model.num_classes:
            return
        is_run = self.config and not _has_classes(self.config)
        about = f"a run of task.name={self.config.task.name!r}" if is_run else "an encoder"
        raise CheckpointError(
            f"{self.weights.where} is {about} without classes; use the command features, evaluate "
            "--protocol=probe, or fine-tune it by --config=configs/finetune.py:init=WHERE."
        )

    def params(self, names: Collection[str] | None = None) -> dict:
        """Reads the parameters, or those in `names`, as nested dictionaries.

        Raises:
          CheckpointError: an array does not match its checksum.
        """
        return trees.unflatten(dict(self.weights.read(names)))


def open_weights(where: str | pathlib.Path, model: Model | None = None) -> LazyWeights:
    """Returns the weights at WHERE without reading arrays.

    Args:
      where: location of weights.
      model: model that the weights are for; supplies the number of heads and the grid where a
        file does not determine them. The decoder in a file is read for a masked autoencoder.

    Raises:
      CheckpointError: there are no readable weights.
    """
    path, entry, given = resolve(where)
    if is_weights_file(path):
        heads = model.decoder.num_heads if isinstance(model, MaeViT) else None
        metadata = model and metadata_lib.from_model(model)
        file = open_weights_file(path, metadata, given, decoder_heads=heads)
        families.report(file.metadata, str(file.path), entry is not None, len(file.other_tower))
        return without_fixed_positions(_weights_of_file(file, entry), model)
    meta = layout.read_item(path, "meta")
    return _weights_of_step(path, _build_step_model(path, meta), meta)


def _weights_of_file(file: WeightsFile, entry: published.PublishedWeights | None) -> LazyWeights:
    def read_classes() -> tuple[str, ...] | None:
        num_classes = file.shapes.get("head/kernel", (0,))[-1]
        names = file.metadata.classes or _read_class_names_beside(file.path, num_classes)
        names = names or (entry and published.class_names(entry))
        return names if num_classes else None  # Names of a head that was omitted.

    return LazyWeights(
        str(file.path), file.shapes, file.grid, file.metadata, file.read, read_classes
    )


def _weights_of_step(step_folder: pathlib.Path, model: Model, meta: dict) -> LazyWeights:
    """The weights of a checkpoint; `assumed` and `family` are of the file that it is made from."""
    abstract_state = checkpoint.stored_param_shapes(step_folder)
    ((kind, leaves),) = abstract_state.items()
    shapes = {name: leaf.shape for name, leaf in trees.flatten(leaves).items()}

    def read(names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        params = trees.flatten(checkpoint.restore(step_folder, abstract_state)[kind])
        yield from ((name, a) for name, a in params.items() if names is None or name in names)

    names = tuple(meta["classes"]) if meta.get("has_class_names", True) else None
    stored = {"assumed": tuple(meta.get("assumed", ())), "family": meta.get("family")}
    known = {name: value for name, value in stored.items() if value}
    metadata = dataclasses.replace(metadata_lib.from_model(model), **known)
    return LazyWeights(str(step_folder), shapes, model.grid, metadata, read, lambda: names)


def _build_step_model(step_folder: pathlib.Path, meta: dict) -> Model:
    config = _read_config(step_folder, meta)
    num_classes = len(meta["classes"]) if _has_classes(config) else 0
    return build(config.model, num_classes=num_classes, image_size=config.data.image_size)


def _has_classes(config: Config) -> bool:
    return task_registry.find_task(config.task).has_classes


def _read_config(step_folder: pathlib.Path, meta: dict) -> Config:
    try:
        config = config_lib.from_dict(meta["config"])[""]
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{step_folder}: its config cannot be used: {error}") from error
    registry.require_trusted(
        (("config.model.mlp", config.model.mlp), ("config.task.name", config.task.name))
    )
    return config


def load(where: str | pathlib.Path, classes: tuple[str, ...] | None = None) -> LoadedModel:
    """Returns model, weights, class names and preprocessing at WHERE; arrays are not read yet.

    Args:
      where: location of weights. A file without preprocessing gets the official whole-image
        resize; a file without class names gets 'class 0', 'class 1', ...
      classes: class names in place of those at WHERE.

    Raises:
      CheckpointError: there are no readable weights, or they do not determine a model.
      ConfigError: `classes` are of another number than those of the head, or contradict its names.
    """
    path, entry, given = resolve(where)
    if is_weights_file(path):
        file = open_weights_file(path, given=given)
        loaded = _load_file(file, entry)
        families.report(file.metadata, str(file.path), entry is not None, len(file.other_tower))
    else:
        loaded = _load_step(path)
    for names, error in ((loaded.classes, CheckpointError), (classes, ConfigError)):
        if names is not None and len(names) != loaded.model.num_classes:
            raise error(
                f"{where}: found {len(names)} class names for a head of "
                f"{loaded.model.num_classes} classes."
            )
    if classes is None:
        return loaded
    if loaded.has_class_names:
        check_new_names(classes, loaded.classes, "--classes")
    return dataclasses.replace(loaded, classes=classes, has_class_names=True)


def _load_file(file: WeightsFile, entry: published.PublishedWeights | None) -> LoadedModel:
    options = infer_model_options(file)
    sizes = {name: options.pop(name) for name in ("num_classes", "image_size")}
    model = build(model_registry.section(**options), **sizes)
    weights = _weights_of_file(file, entry)
    metadata = file.metadata
    plan_adaptation(weights, model, Init())  # Raises if a parameter is missing or left over.
    names = weights.read_classes()
    data = Data(
        eval_crop=metadata.crop or "resize",
        resample=metadata.resample or "tf_bilinear",
        crop_fraction=metadata.crop_fraction or Data.crop_fraction,
        eval_side=metadata.crop_side,
    )
    return LoadedModel(
        folder=None,
        model=model,
        weights=weights,
        classes=tuple(names or (f"class {k}" for k in range(model.num_classes))),
        has_class_names=bool(names),
        recipe=EvalRecipe.from_data(data, model.image_size),
        config=None,
        weights_file=file,
    )


def _read_class_names_beside(path: pathlib.Path, num_classes: int) -> tuple[str, ...] | None:
    """Class names that `convert` wrote beside a file because they did not fit into it."""
    classes_path = path.with_suffix(CLASSES_SUFFIX)
    if not classes_path.is_file():
        return None
    text = classes_path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    names = tuple(text.removesuffix("\n").split("\n"))
    return names if len(names) == num_classes else None


def _load_step(path: pathlib.Path) -> LoadedModel:
    meta = layout.read_item(path, "meta")
    model, config = _build_step_model(path, meta), _read_config(path, meta)
    weights, has_classes = _weights_of_step(path, model, meta), _has_classes(config)
    is_in_run = path.parent.name in (layout.FOLDER, layout.BEST)
    is_converted = meta.get("is_converted", False)  # Written by `convert`, not by a run.
    return LoadedModel(
        folder=None if is_converted else path.parent.parent if is_in_run else path.parent,
        model=model,
        weights=weights if has_classes else weights.without(adapt.is_of_masked_training),
        classes=tuple(meta["classes"]) if has_classes else (),
        has_class_names=meta.get("has_class_names", True),
        recipe=EvalRecipe.from_data(config.data, model.image_size),
        config=None if is_converted else config,
        weights_file=None,
    )


def model_section(where: str | pathlib.Path) -> ModelSection:
    """Returns the `config.model` section of the weights at WHERE; no arrays are read.

    Published weights are not downloaded. Raises CheckpointError if there are no readable weights,
    or they do not determine a model.
    """
    name, _ = split_options(where)
    if not pathlib.Path(name).exists():
        if encoders.published_weights(name):
            return model_registry.section(name)
        if entry := published.find_published(name):
            return model_registry.section(entry.model, pool=entry.pool, pre_logits=entry.pre_logits)
    path, _, given = resolve(where)
    if not is_weights_file(path):
        return _build_step_model(path, layout.read_item(path, "meta")).config
    options = infer_model_options(open_weights_file(path, given=given))
    names = {field.name for field in dataclasses.fields(ModelSection)}
    return model_registry.section(**{k: v for k, v in options.items() if k in names})


def load_params(
    path: str | pathlib.Path,
    model: Model,
    *,
    new_head: bool = False,
    resize: bool = False,
    resize_rule: str = Init.resize_rule,
    drop_token: bool = False,
    allow_numerics: bool = False,
    shardings: dict | None = None,
) -> dict:
    """Returns pretrained parameters for a model; rejects every change that is not permitted.

    LayerScale that the model does not have is folded into its dense layers, which changes no
    output. Changes are printed.

    Args:
      path: location of weights: a file, folder, URL, published name, workdir or checkpoint.
      model: the model that the parameters are for.
      new_head: permits a head of zeros, and dropping `projection` and `pre_logits`. A decoder that
        the weights do not have gets initial values.
      resize: permits resizing the position embeddings.
      resize_rule: a name in `vit_jax.models.resize_grid.RESIZE_RULES`, or your own rule as
        `package.module:function`; auto is the rule of the weights' own code.
      drop_token: permits dropping the class token or the distillation token for a model without it.
      allow_numerics: permits weights trained with another GELU, LayerNorm epsilon or pixel
        statistics than the model's.
      shardings: tree of shardings from `vit_jax.distributed.mesh.tree_shardings`; each array is
        put on devices as it is read. None returns numpy arrays.

    Raises:
      CheckpointError: the weights do not fit the model; all differences are listed in one line.
    """
    registry.import_objects([("resize_rule", resize_rule)])
    weights = open_weights(path, model)
    permissions = Init(
        new_head=new_head,
        resize=resize,
        resize_rule=resize_rule,
        drop_token=drop_token,
        allow_numerics=allow_numerics,
    )
    plan = plan_adaptation(weights, model, permissions, section="")
    for note in plan.notes:
        print_line(f"{path}: {note}")
    params = read_params(weights, plan, shardings)
    if plan.drawn:
        drawn = trees.flatten(make_init(model)(jax.random.key(0)))
        params = trees.unflatten(trees.flatten(params) | {name: drawn[name] for name in plan.drawn})
    return params


def plan_adaptation(
    weights: LazyWeights,
    model: Model,
    permissions: Init,
    head_rows: tuple[int, ...] | None = None,
    section: str = adapt.CONFIG_SECTION,
) -> adapt.AdaptPlan:
    """Returns how weights become parameters of a model.

    Args:
      weights: the pretrained weights.
      model: the model that the parameters are for.
      permissions: permitted changes: the fields `new_head`, `resize`, `resize_rule`, `drop_token`
        and `allow_numerics`.
      head_rows: output of the weights for each class of the model; None if they are the same.
      section: as in `adapt.make_plan`.

    Raises:
      CheckpointError: the weights do not fit the model; all differences are listed in one line.
    """
    differences = _numeric_differences(weights, model, section)
    return adapt.make_plan(
        weights.shapes,
        param_shapes(model),
        old_grid=weights.grid,
        new_grid=model.grid,
        permissions=permissions,
        head_bias=model.config.head_bias,
        head_std=model.config.head_std,
        head_rows=head_rows,
        grid_note=families.grid_note(weights.metadata),
        resize_rule=weights.metadata.resize_rule,
        where=weights.where,
        differences=() if permissions.allow_numerics else differences,
        section=section,
    )


def _numeric_differences(weights: LazyWeights, model: Model, section: str) -> list[str]:
    metadata, model_metadata, lines = weights.metadata, metadata_lib.from_model(model), []
    for name in NUMERICS:
        source, target = getattr(metadata, name), getattr(model_metadata, name)
        if source is not None and target is not None and source != target:
            note = metadata.assumption(name)
            assumed = f", assumed {note.partition(' ')[2]}," if note else ""
            value = f"{name}={source!r}"
            remedy = f"set model.{value}" if section else f"create_model(..., {value})"
            lines.append(
                f"{name} is {source!r} in the weights{assumed} and {target!r} in the model "
                f"({remedy}, or {section}allow_numerics=True permits it)"
            )
    return lines


def read_params(weights: LazyWeights, plan: adapt.AdaptPlan, shardings: dict | None = None) -> dict:
    """Returns the parameters of a plan as nested dictionaries, optionally put on devices."""
    sharding_of = trees.flatten(shardings) if shardings is not None else {}
    params = {}
    for name, array in adapt.apply_plan(plan, weights.read):
        # Wait for the transfer, so that the host holds one array at a time.
        params[name] = (
            jax.block_until_ready(jax.device_put(array, sharding_of[name]))
            if sharding_of
            else array
        )
    return trees.unflatten(params)
