"""A stage of a config, checked against its data, devices and initial weights."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import jax

from vit_jax.checkpoints import layout
from vit_jax.config.schema import Config, Init
from vit_jax.config.validate import import_user_code
from vit_jax.data.labels import match_classes, relabelled, same_form
from vit_jax.data.overview import describe_splits
from vit_jax.data.sketch import count_removed, make_sketch
from vit_jax.data.sources import Source, check_classes, find_kind, open_both, open_split
from vit_jax.data.step_checks import check_augmentations
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.evaluation.online import open_probe_sets
from vit_jax.models.registry import ViT, build, param_shapes
from vit_jax.tasks import registry as task_registry
from vit_jax.text import print_line
from vit_jax.training import auto
from vit_jax.training import build as build_lib
from vit_jax.training.checks import (
    check_outside_data,
    check_stage,
    errors_of_user_objects,
    unusual_sizes,
)
from vit_jax.weights import adapt, load, metadata
from vit_jax.weights.finite import require_finite_params


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Teacher model of a distillation, at the image size of the student."""

    model: ViT
    weights: load.LazyWeights
    plan: adapt.AdaptPlan

    def params(self) -> dict:
        """Reads the parameters of the teacher; raises CheckpointError if any is not finite."""
        params = load.read_params(self.weights, self.plan)
        require_finite_params(params, self.weights.where)
        return params


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage that has passed all checks which need no compilation and no change of the workdir."""

    name: str
    config: Config
    folder: pathlib.Path
    train_source: Source
    val_source: Source | None
    fewshot_sources: dict[str, tuple[Source, Source]]  # Name -> training and test source.
    probe_sets: tuple[Source, Source] | None  # Training and test source of config.probe.
    model: ViT
    mesh: jax.sharding.Mesh
    train_recipe: Callable  # Image and generator -> the columns of a training example.
    total_steps: int
    start_from: load.LazyWeights | None
    plan: adapt.AdaptPlan | None
    teacher: Teacher | None
    notes: tuple[str, ...] = ()  # On memory and unusual sizes, for the user.

    @functools.cached_property
    def fingerprints(self) -> dict[str, int]:
        """Fingerprint of the data of each split, by which a resumed run detects other data."""
        splits = {"train": self.train_source, "val": self.val_source}
        return {name: source.fingerprint() for name, source in splits.items() if source is not None}

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train_source.classes

    def describe_data(self) -> list[str]:
        """Returns lines with the images and classes of each split, and what is skipped."""
        data = self.config.data
        splits = {data.split: self.train_source}
        if self.val_source is not None:
            splits["dev" if data.dev is not None else data.val_split] = self.val_source
        lines = describe_splits(splits)
        if self.probe_sets is not None:
            train, test = self.probe_sets
            lines.append(
                f"probe: {len(train):,} images, {len(test):,} scored; {len(train.classes)} classes"
            )
        return lines

    @functools.cached_property
    def sketch(self) -> list[list[int]] | None:
        """Description of the training images, by which a resumed run detects removed ones."""
        return make_sketch(self.train_source)

    def check_same_data(self, meta: dict, data: dict) -> str:
        """Compares the `meta` and `data` of a checkpoint with the data of this stage.

        Returns a note if a few training images have been removed, because they could not be read;
        else ''. Raises DataError for any other difference.
        """
        for label, (old, new) in enumerate(zip(meta["classes"], self.classes, strict=False)):
            if same_form(old) != same_form(new):
                raise DataError(f"class {label} is {old!r} in the checkpoint, {new!r} in the data.")
        if len(meta["classes"]) != len(self.classes):
            raise DataError(
                f"the data has {len(self.classes)} classes, not {len(meta['classes'])} as before; "
                "use a new --workdir."
            )
        if data["fingerprints"] == self.fingerprints:
            return ""
        old, new = data["num_examples"], len(self.train_source)
        num_removed = count_removed(data.get("sketch"), self.sketch)
        removed = f"{num_removed} of {old} training images have been removed"
        if data["fingerprints"].get("val") != self.fingerprints.get("val"):
            num_removed = None
        max_bad = self.config.data.max_bad
        if num_removed and num_removed <= max(1, max_bad * old):
            return f"{removed}; the run continues with the others, in another order."
        if num_removed:
            raise DataError(
                f"{removed}, more than config.data.max_bad={max_bad} allows. Restore them, "
                "increase data.max_bad, or use a new --workdir."
            )
        counts = f": {new} training examples instead of {old}" if new != old else ""
        raise DataError(
            f"images, names or labels have changed since this run started{counts}. Restore the "
            "data, or use a new --workdir. To skip unreadable images, do not remove them; use "
            "--config.data.on_bad_image=skip."
        )


def prepare_stage(
    name: str, config: Config, folder: pathlib.Path, earlier: Mapping[str, Stage]
) -> Stage:
    """Checks a stage against its data, devices and initial weights before anything runs.

    Raises ConfigError, DataError or CheckpointError, in one line.
    """
    config = auto.with_model(auto.with_saved(import_user_code(config), folder))
    mesh = build_lib.build_mesh(config)
    if config.model.kernels == "cudnn" and mesh.devices.flat[0].platform != "gpu":
        raise ConfigError(
            "config.model.kernels is 'cudnn', which needs a GPU; the devices are "
            f"{mesh.devices.flat[0].platform}. Use auto."
        )
    # Errors of the model and the augmentation before data is read.
    model = task_registry.build_model(config, num_classes=1)
    with errors_of_user_objects(config):
        config, note = auto.with_accumulate(config, model, mesh)
    train_recipe = task_registry.make_train_recipe(config, model)
    check_augmentations(config.data, model.image_size)
    wanted = _data_sections(config)
    alike = (e for e in earlier.values() if _data_sections(e.config) == wanted)
    same = next(alike, None)  # Its data is open already.
    train_source, val_source = (same.train_source, same.val_source) if same else _open_data(config)
    if task_registry.find_task(config.task).has_classes:
        check_classes(train_source, config.data, f"task.name={config.task.name!r}")
    check_outside_data(folder, config, train_source)
    model = task_registry.build_model(config, num_classes=len(train_source.classes))
    checkpoints = folder / layout.FOLDER
    if checkpoints.exists() and not checkpoints.is_dir():
        raise ConfigError(f"{checkpoints} is not a folder; expected the folder of the checkpoints.")
    is_new = not layout.list_steps(checkpoints)
    found = _starting_weights(config, folder, earlier, model) if is_new else None
    plan = found and load.plan_adaptation(
        found, model, config.init, _head_rows(config, found, model, train_source.classes)
    )
    total_steps = build_lib.num_steps(config, len(train_source))
    notes = [note] if note else []
    if is_new:
        check_stage(config, model, total_steps)
        start = found.metadata if found else metadata.UNKNOWN
        notes += unusual_sizes(config, len(train_source), start)
    return Stage(
        name=name,
        config=config,
        folder=folder,
        train_source=train_source,
        val_source=val_source,
        fewshot_sources=same.fewshot_sources if same else _open_fewshot(config),
        probe_sets=same.probe_sets if same else open_probe_sets(config),
        model=model,
        mesh=mesh,
        train_recipe=train_recipe,
        total_steps=total_steps,
        start_from=found,
        plan=plan,
        teacher=_teacher(config, earlier, train_source.classes),
        notes=tuple(notes),
    )


def _data_sections(config: Config) -> tuple:
    return config.data, config.fewshot, config.probe


def _open_data(config: Config) -> tuple:
    """Returns the sources of training and of `val` (or None); raises DataError."""
    data = config.data
    train_source, val_source = open_both(data)
    val_split = data.val_split if data.dev is None else "dev"
    for source, split in ((train_source, data.split), (val_source, val_split)):
        if source is not None and not len(source):
            raise DataError(f"split {split!r} of data.source={data.source} is empty.")
    if val_source is not None:
        owner = f"data.val_split={val_split}"
        val_source = relabelled(val_source, train_source.classes, owner=owner)
    return train_source, val_source


def _open_fewshot(config: Config) -> dict[str, tuple]:
    """Returns training and test source of each set of `config.fewshot`, by name."""
    section, sources = config.fewshot, {}
    if section.every is None:
        return sources
    data = dataclasses.replace(config.data, mix=())
    if section.source and section.source != data.source:  # It has its own folder.
        data = dataclasses.replace(data, source=section.source, dir=section.dir)
    kind = find_kind(data)
    for selected in [kind.select(data, name) for name in section.sets] or [data]:
        title = kind.title(selected)
        train = open_split(selected, section.split)
        check_classes(train, selected, "config.fewshot")
        test = relabelled(open_split(selected, section.test_split), train.classes)
        for source, split in ((train, section.split), (test, section.test_split)):
            if not len(source):
                raise DataError(f"fewshot.sets: split {split!r} of {title} is empty.")
        if title in sources:
            raise ConfigError(f"config.fewshot.sets has two sets with the name {title}.")
        sources[title] = (train, test)
    return sources


def _starting_weights(
    config: Config, folder: pathlib.Path, earlier: Mapping[str, Stage], model
) -> load.LazyWeights | None:
    if config.init.path:
        return load.open_weights(config.init.path, model)
    if not config.init.stage:
        return None
    if config.init.stage in earlier:
        return _weights_of_stage(earlier[config.init.stage])
    # The workdir is that of this stage.
    return load.open_weights(folder.parent / config.init.stage)


def _head_rows(
    config: Config, weights: load.LazyWeights, model, classes: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Returns the output of the starting weights for each class, if the head is kept."""
    shapes = (weights.shapes, param_shapes(model))
    if config.init.new_head or len({each.get("head/kernel", ()) for each in shapes}) > 1:
        return None  # Another number of classes is reported with the other differences.
    if "head/kernel" not in weights.shapes:
        return None
    hint = "init.new_head=True replaces the head by zeros."
    return _match_outputs(weights, classes, weights.where, CheckpointError, hint)


def _match_outputs(
    weights: load.LazyWeights, classes: tuple[str, ...], where: str, error, hint: str
) -> tuple[int, ...] | None:
    """Returns the output of weights for each class of the data; None if they are in its order."""
    names, has_names = weights.read_classes(), True
    if names is None:
        names, has_names = tuple(f"class {k}" for k in range(len(classes))), False
    match = match_classes(
        classes,
        names,
        known_owner=where,
        has_names=has_names,
        is_complete=True,
        error=error,
        hint=hint,
    )
    if match.note:
        print_line(f"{where}: {match.note}.")
    return None if match.is_identity else match.indices


def _weights_of_stage(before: Stage) -> load.LazyWeights:
    """Returns the weights of an earlier stage, which may not have run yet."""
    return load.LazyWeights(
        where=str(before.folder),
        shapes=param_shapes(before.model),
        grid=before.model.grid,
        metadata=metadata.from_model(before.model),
        read=lambda names=None: load.open_weights(before.folder).read(names),
        read_classes=lambda: before.classes,
    )


def _teacher(
    config: Config, earlier: Mapping[str, Stage], classes: tuple[str, ...]
) -> Teacher | None:
    where = config.task.teacher
    if not where:
        return None
    if where in earlier:
        section, weights = earlier[where].config.model, _weights_of_stage(earlier[where])
        num_classes = len(earlier[where].classes)
    else:
        loaded = load.load(where)
        loaded.require_head()
        section, num_classes, weights = loaded.model.config, len(loaded.classes), loaded.weights
    title = f"config.task.teacher={where}"
    if num_classes != len(classes):
        raise ConfigError(f"{title} has {num_classes} classes; the data has {len(classes)}.")
    hint = "A teacher must have the classes of the data."
    rows = _match_outputs(weights, classes, title, ConfigError, hint)
    model = build(section, num_classes=num_classes, image_size=config.data.image_size)
    plan = load.plan_adaptation(weights, model, Init(resize=True), rows)
    return Teacher(model, weights, plan)
