"""WHERE (workdir, step, file, folder, URL, published name) -> model, parameters, preprocessing."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator

import jax
import numpy as np

from vit_jax import config as config_lib
from vit_jax import trees
from vit_jax.checkpoints import checkpoint, workdir
from vit_jax.config import schema
from vit_jax.config.schema import Config
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models import registry as model_registry
from vit_jax.models.registry import BitResNet, ViT, build, param_shapes
from vit_jax.tasks import registry as task_registry
from vit_jax.weights import adapt, download, metadata, published
from vit_jax.weights.archive import open_archive
from vit_jax.weights.infer_model import model_options
from vit_jax.weights.metadata import Facts
from vit_jax.weights.reader import Foreign, open_foreign
from vit_jax.weights.writer import CLASSES_SUFFIX

Model = ViT | BitResNet
# Same shapes, other outputs.
NUMERICS = ("gelu", "norm_eps", "pixel_stats", "pos_embed", "pos_embed_at")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters that can be judged by their shapes and read, one by one, when wanted."""

    where: str
    shapes: dict[str, tuple[int, ...]]
    grid: tuple[int, int] | None
    facts: Facts
    read: Callable[[Collection[str] | None], Iterator[tuple[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What evaluation, prediction and conversion need of a checkpoint."""

    folder: pathlib.Path | None  # Of the run, where there is one.
    section: schema.Model  # What builds the model.
    model: Model
    weights: Weights
    classes: tuple[str, ...]
    has_class_names: bool  # Or else they are 'class 0', 'class 1', ...
    recipe: EvalRecipe
    config: Config | None
    foreign: Foreign | None  # What stands behind weights that are not ours.

    def refuse_without_head(self) -> None:
        """Raises CheckpointError for weights that give features and no classes."""
        if self.model.num_classes:
            return
        if self.config and _is_masked(self.config):
            why = "is a masked patch run: it has no classes; fine-tune it first"
        else:
            why = "has no head: it gives features only"
        raise CheckpointError(f"{self.weights.where} {why}.")

    def params(self, names: Collection[str] | None = None) -> dict:
        """The parameters as the model takes them, or some; ours are checked by their checksums."""
        return trees.unflatten(dict(self.weights.read(names)))


def locate(where: str | pathlib.Path) -> tuple[pathlib.Path, published.Published | None]:
    """The file, foreign folder or newest step folder behind WHERE; published weights are fetched.

    Raises ConfigError that lists the stages of a workdir that has some, CheckpointError
    where there is nothing to load.
    """
    path = pathlib.Path(where)
    if download.is_url(str(where)):
        path = _sound(download.fetch(str(where)), str(where))
    if is_foreign(path):
        return path, None
    if not path.exists() and (entry := published.find(str(where))):
        return _sound(published.fetch_published(entry), entry.url), entry
    config = workdir.read_json(path / workdir.CONFIG) or {}
    stages = config.get("stages", {})
    seeds = sorted(found.parent.name for found in path.glob(f"seed_*/{checkpoint.FOLDER}"))
    if seeds and not (path / checkpoint.FOLDER).exists():
        raise ConfigError(
            f"{where} is a sweep with the runs {', '.join(seeds)}; name one, as in "
            f"{path / seeds[0]}."
        )
    if isinstance(stages, dict) and stages:
        raise ConfigError(
            f"{where} holds the stages {', '.join(stages)}; name one, as in {path / min(stages)}."
        )
    if not path.exists():
        hint = published.nearest_name(str(where))
        raise CheckpointError(f"{where}: no such file, folder or published name.{hint}")
    return checkpoint.find_step_folder(path), None


def _sound(path: pathlib.Path, url: str) -> pathlib.Path:
    """A file that was fetched; one that cannot be read is not kept in the cache."""
    if path.is_file() and not url.startswith("file:"):
        try:
            open_archive(path)
        except CheckpointError as error:
            path.unlink()
            raise CheckpointError(f"{url}: {error} It is removed, to be fetched anew.") from error
    return path


def is_foreign(path: pathlib.Path) -> bool:
    """Whether a place is a file, or holds weights in a form that is not a run's."""
    is_file = path.exists() and not path.is_dir()
    return is_file or (path / "model.safetensors").is_file()


def weights(where: str | pathlib.Path, model: Model | None = None) -> Weights:
    """The parameters behind WHERE; raises CheckpointError where there are none.

    Args:
      model: what they are meant for; it stands in where a file does not say how many heads
        it has, or which grid.
    """
    path, _ = locate(where)
    if is_foreign(path):
        return _foreign_weights(open_foreign(path, model and metadata.of_model(model)))
    return _step_weights(path, _model(path, checkpoint.read_item(path, "meta")))


def _foreign_weights(found: Foreign) -> Weights:
    return Weights(str(found.path), found.shapes, found.grid, found.facts, found.read)


def _step_weights(step_folder: pathlib.Path, model: Model) -> Weights:
    like = checkpoint.stored_param_shapes(step_folder)
    ((kind, leaves),) = like.items()
    shapes = {name: leaf.shape for name, leaf in trees.flatten(leaves).items()}

    def read(names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        restored = trees.flatten(checkpoint.restore(step_folder, like)[kind])
        yield from ((name, array) for name, array in restored.items() if _is_in(name, names))

    return Weights(str(step_folder), shapes, model.grid, metadata.of_model(model), read)


def _is_in(name: str, names: Collection[str] | None) -> bool:
    return names is None or name in names


def _model(step_folder: pathlib.Path, meta: dict) -> Model:
    config = config_of(step_folder, meta)
    num_classes = 0 if _is_masked(config) else len(meta["classes"])
    return build(config.model, num_classes=num_classes, image_size=config.data.image_size)


def _is_masked(config: Config) -> bool:
    """Whether a run predicted masked patches: its classes are the data's, not the model's."""
    return not task_registry.find_task(config.task).has_classes


def _body(found: Weights) -> Weights:
    """The weights of a masked patch run without what only that task needs."""
    shapes = {name: s for name, s in found.shapes.items() if name not in adapt.MASKED}

    def read(names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        return found.read(shapes.keys() if names is None else names)

    return dataclasses.replace(found, shapes=shapes, read=read)


def config_of(step_folder: pathlib.Path, meta: dict) -> Config:
    """The config of the run that wrote a checkpoint."""
    try:
        return config_lib.from_dict(meta["config"])[""]
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{step_folder}: its config cannot be read: {error}.") from error


def load(where: str | pathlib.Path, classes: tuple[str, ...] | None = None) -> Loaded:
    """Model, weights, class names and preprocessing behind WHERE; arrays are not read yet.

    A file that says nothing of preprocessing and classes gets the official whole-image
    resize and the names 'class 0', 'class 1', ..., or those given.

    Raises CheckpointError where there is nothing to load or the weights make no model.
    """
    path, entry = locate(where)
    loaded = _load_foreign(open_foreign(path), entry) if is_foreign(path) else _load_step(path)
    if classes is not None:
        loaded = dataclasses.replace(loaded, classes=classes, has_class_names=True)
    if len(loaded.classes) != loaded.model.num_classes:
        raise ConfigError(
            f"{len(loaded.classes)} class names for a head of {loaded.model.num_classes}."
        )
    return loaded


def _load_foreign(found: Foreign, entry: published.Published | None) -> Loaded:
    options = model_options(found)
    sizes = {name: options.pop(name) for name in ("num_classes", "image_size")}
    section = model_registry.section(**options)
    model = build(section, **sizes)
    shapes = _foreign_weights(found)
    plan_for(shapes, model)  # Nothing missing, nothing left over.
    known = found.facts
    names = known.classes or _classes_beside(found.path, model.num_classes)
    names = names or (entry and published.class_names(entry))
    names = names if model.num_classes else None  # Of a head that was left out.
    recipe = EvalRecipe(
        model.image_size,
        known.crop or "resize",
        known.resample or "tf_bilinear",
        known.crop_fraction or EvalRecipe.crop_fraction,
    )
    return Loaded(
        folder=None,
        section=section,
        model=model,
        weights=shapes,
        classes=tuple(names or (f"class {k}" for k in range(model.num_classes))),
        has_class_names=bool(names),
        recipe=recipe,
        config=None,
        foreign=found,
    )


def _classes_beside(path: pathlib.Path, num_classes: int) -> tuple[str, ...] | None:
    """The names that `convert` puts beside a file they do not fit into."""
    beside = path.with_suffix(CLASSES_SUFFIX)
    if not beside.is_file():
        return None
    text = beside.read_text(encoding="utf-8", errors="surrogateescape")
    titles = tuple(text.removesuffix("\n").split("\n"))
    return titles if len(titles) == num_classes else None


def _load_step(path: pathlib.Path) -> Loaded:
    meta = checkpoint.read_item(path, "meta")
    model, config = _model(path, meta), config_of(path, meta)
    found = _step_weights(path, model)
    is_in_run = path.parent.name in (checkpoint.FOLDER, checkpoint.BEST)
    is_converted = meta.get("is_converted", False)  # Then there is no run, and no data of it.
    return Loaded(
        folder=None if is_converted else path.parent.parent if is_in_run else path.parent,
        section=config.model,
        model=model,
        weights=_body(found) if _is_masked(config) else found,
        classes=() if _is_masked(config) else tuple(meta["classes"]),
        has_class_names=meta.get("has_class_names", True),
        recipe=eval_recipe(config, model),
        config=None if is_converted else config,
        foreign=None,
    )


def eval_recipe(config: Config, model: Model) -> EvalRecipe:
    """How a config's images become the model's input when they are evaluated."""
    data = config.data
    return EvalRecipe(
        model.image_size,
        data.eval_crop,
        data.resample,
        data.crop_fraction,
        data.decoder,
    )


def load_params(
    path: str | pathlib.Path,
    model: Model,
    *,
    new_head: bool = False,
    resize: bool = False,
    drop_token: bool = False,
    allow_numerics: bool = False,
    shardings: dict | None = None,
) -> dict:
    """Pretrained parameters for a model, strict in all that is not permitted.

    Args:
      path: a file of weights (official or big_vision `.npz`; timm's, DINO's or Hugging Face's
        `.safetensors`), a Hugging Face folder, a URL, a published name, or a workdir,
        checkpoint or step of ours.
      new_head: permission to start with a head of zeros and to drop `pre_logits`.
      resize: permission to resize position embeddings; the change is printed.
      drop_token: permission to drop the class token for a model without one.
      allow_numerics: permission to use weights with another GELU, epsilon or pixel
        statistics than they were made with.
      shardings: a tree of places like the parameters', from
        `vit_jax.distributed.mesh.tree_shardings`; each array is put there as it is read. Without,
        arrays are numpy's.

    LayerScale that the model has not is folded into its dense layers, which changes no
    output. Raises CheckpointError that lists every difference at once.
    """
    found = weights(path, model)
    permissions = {"new_head": new_head, "resize": resize, "drop_token": drop_token}
    plan = plan_for(found, model, **permissions, allow_numerics=allow_numerics)
    for note in plan.notes:
        print(f"{path}: {note}")
    return read_params(found, plan, shardings)


def plan_for(
    found: Weights, model: Model, *, allow_numerics: bool = False, **permissions: bool
) -> adapt.Plan:
    """How weights become the start of a model; raises CheckpointError if they cannot."""
    return adapt.make_plan(
        found.shapes,
        param_shapes(model),
        old_grid=found.grid,
        new_grid=model.grid,
        head_bias=model.config.head_bias,
        where=found.where,
        differences=() if allow_numerics else _numeric_differences(found.facts, model),
        **permissions,
    )


def _numeric_differences(known: Facts, model: Model) -> list[str]:
    wanted, lines = metadata.of_model(model), []
    for name in NUMERICS:
        there, here = getattr(known, name), getattr(wanted, name)
        if there is not None and here is not None and there != here:
            lines.append(
                f"{name} is {there!r} there, {here!r} here: set model.{name}={there!r}, or "
                "init.allow_numerics=True permits it"
            )
    return lines


def read_params(found: Weights, plan: adapt.Plan, shardings: dict | None = None) -> dict:
    """The parameters that a plan makes of weights, each put in its place as it is read."""
    places = trees.flatten(shardings) if shardings is not None else {}
    params = {}
    for name, array in adapt.apply_plan(plan, found.read):
        # One array at a time on the host: nothing is read before the last one has its place.
        params[name] = (
            jax.block_until_ready(jax.device_put(array, places[name])) if places else array
        )
    return trees.unflatten(params)
