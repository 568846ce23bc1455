"""WHERE (workdir, stage, `checkpoints`, step or `.npz`) -> model, parameters, preprocessing."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from vit_jax import checkpoint, transplant, trees, workdir
from vit_jax import config as config_lib
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.interop import npz
from vit_jax.models import ViT, build, create_model, param_shapes
from vit_jax.schema import Config


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters that can be judged by their shapes and read when wanted."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    grid: tuple[int, int]
    read: Callable[[], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What evaluation and prediction need of a checkpoint."""

    folder: pathlib.Path | None  # Of the run, where there is one.
    model: ViT
    weights: Weights
    classes: tuple[str, ...]
    recipe: EvalRecipe
    config: Config | None

    def params(self) -> dict:
        """The parameters as the model takes them; ours are checked against their checksums."""
        return trees.unflatten(self.weights.read())


def locate(where: str | pathlib.Path) -> pathlib.Path:
    """An `.npz` file, or the newest step folder behind WHERE.

    Raises ConfigError that lists the stages of a workdir that has some, CheckpointError
    where there is nothing to load.
    """
    path = pathlib.Path(where)
    if path.is_file():
        return path
    stages = (workdir.read_json(path / workdir.CONFIG) or {}).get("stages", {})
    if isinstance(stages, dict) and stages:
        raise ConfigError(
            f"{where} holds the stages {', '.join(stages)}; name one, as in {path / min(stages)}."
        )
    return checkpoint.find(path)


def weights(where: str | pathlib.Path) -> Weights:
    """The parameters behind WHERE; raises CheckpointError where there are none."""
    path = locate(where)
    if path.is_file():
        return _npz_weights(path)
    return _step_weights(path, _model(path, checkpoint.read_item(path, "meta")))


def _npz_weights(path: pathlib.Path) -> Weights:
    if path.suffix != ".npz":
        raise CheckpointError(f"{path}: a weights file must be an .npz.")
    arrays = npz.read_npz(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    return Weights(str(path), shapes, npz.grid_of(shapes, path), lambda: arrays)


def _step_weights(step_folder: pathlib.Path, model: ViT) -> Weights:
    like = checkpoint.stored_params(step_folder)
    shapes = {name: leaf.shape for name, leaf in trees.flatten(like["params"]).items()}
    return Weights(
        str(step_folder),
        shapes,
        model.grid,
        lambda: trees.flatten(checkpoint.restore(step_folder, like)["params"]),
    )


def _model(step_folder: pathlib.Path, meta: dict) -> ViT:
    config = config_of(step_folder, meta)
    return build(config.model, num_classes=len(meta["classes"]), image_size=config.data.image_size)


def config_of(step_folder: pathlib.Path, meta: dict) -> Config:
    """The config of the run that wrote a checkpoint."""
    try:
        return config_lib.from_dict(meta["config"])[""]
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{step_folder}: its config cannot be read: {error}.") from error


def load(where: str | pathlib.Path, classes: tuple[str, ...] | None = None) -> Loaded:
    """Model, weights, class names and preprocessing behind WHERE; arrays are not read yet.

    An npz says nothing of preprocessing and classes: it gets the official whole-image
    resize and the names 'class 0', 'class 1', ..., or those given.

    Raises CheckpointError where there is nothing to load or the weights make no model.
    """
    path = locate(where)
    if path.is_file():
        found = _npz_weights(path)
        model = create_model("vit_b16", **npz.model_options(found.shapes, path))
        plan_for(found, model, new_head=False, resize=False)  # Nothing missing, nothing left over.
        names = classes or tuple(f"class {k}" for k in range(model.num_classes))
        recipe, folder, config = EvalRecipe(model.image_size, "resize", "tf_bilinear"), None, None
    else:
        meta = checkpoint.read_item(path, "meta")
        model, config = _model(path, meta), config_of(path, meta)
        found = _step_weights(path, model)
        names = classes or tuple(meta["classes"])
        recipe = eval_recipe(config, model)
        is_in_run = path.parent.name == checkpoint.FOLDER
        folder = path.parent.parent if is_in_run else path.parent
    if len(names) != model.num_classes:
        raise ConfigError(f"{len(names)} class names for a head of {model.num_classes}.")
    return Loaded(folder, model, found, names, recipe, config)


def eval_recipe(config: Config, model: ViT) -> EvalRecipe:
    """How a config's images become the model's input when they are evaluated."""
    return EvalRecipe(model.image_size, config.data.eval_crop, config.data.resample)


def load_params(
    path: str | pathlib.Path, model: ViT, *, new_head: bool = False, resize: bool = False
) -> dict:
    """Pretrained parameters for a model, strict in all that is not permitted.

    Args:
      path: an official `.npz`, or a workdir, checkpoint or step of ours.
      new_head: permission to start with a head of zeros and to drop `pre_logits`.
      resize: permission to resize position embeddings; the change is printed.

    Raises CheckpointError that lists every difference at once.
    """
    found = weights(path)
    plan = plan_for(found, model, new_head=new_head, resize=resize)
    for note in plan.notes:
        print(f"{path}: {note}")
    return trees.unflatten(transplant.apply_plan(plan, found.read()))


def plan_for(found: Weights, model: ViT, *, new_head: bool, resize: bool) -> transplant.Plan:
    """How weights become the start of a model; raises CheckpointError if they cannot."""
    return transplant.make_plan(
        found.shapes,
        param_shapes(model),
        old_grid=found.grid,
        new_grid=model.grid,
        new_head=new_head,
        resize=resize,
        where=found.where,
    )
