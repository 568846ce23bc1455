"""Configs that earlier versions wrote, in the fields of this version.

Workdirs and checkpoints hold the config of their run. `upgrade` translates one that was written
with fields that no longer exist; a config file or a flag that uses such a field gets `hint`.
"""

from collections.abc import Callable

from vit_jax.errors import ConfigError

# Field of an earlier version -> its spelling in this version, for error messages.
RENAMED: dict[str, str] = {
    "optimizer.beta1": "optimizer.kwargs.b1 (adafactor: optimizer.kwargs.momentum)",
    "optimizer.beta2": "optimizer.kwargs.b2 (adafactor: optimizer.kwargs.beta2_cap)",
    "optimizer.momentum": "optimizer.kwargs.momentum",
    "optimizer.moment_dtype": "optimizer.kwargs.mu_dtype (sgd: optimizer.kwargs.accumulator_dtype, "
    "adafactor: optimizer.kwargs.dtype_momentum)",
    "data.crop": "data.augment='random_crop|flip'; the crops are inception_crop, "
    "random_resized_crop, resize, random_crop and pad_crop",
    "data.crop_area": "data.augment='random_resized_crop(0.05,1.0)|flip'",
    "data.flip": "data.augment='inception_crop|flip', or 'inception_crop' for no flip",
    "data.randaug": "data.augment='inception_crop|flip|randaug(2,10)' for 'published', or "
    "'inception_crop|flip|randaug_increasing(2,10)' for 'corrected'",
    "data.randaug_layers": "data.augment='inception_crop|flip|randaug(2,10)': layers, magnitude",
    "data.randaug_magnitude": "data.augment='inception_crop|flip|randaug(2,10)': layers, magnitude",
    "data.randaug_std": "data.augment='inception_crop|flip|randaug_increasing(2,9,std=0.5)'",
    "data.randaug_prob": "data.augment='inception_crop|flip|randaug_increasing(2,9,prob=0.5)'",
    "data.three_augment": "data.augment='inception_crop|flip|three_augment'",
    "data.color_jitter": "data.augment='inception_crop|flip|color_jitter(0.3)'",
    "data.random_erasing": "data.augment='inception_crop|flip|erase(0.25)'",
}

# Optimizer -> field of an earlier version -> the option that replaces it.
_ADAM = {"beta1": "b1", "beta2": "b2", "moment_dtype": "mu_dtype"}
_OPTIMIZER_KWARGS = {
    "adamw": _ADAM,
    "lamb": _ADAM,
    "sgd": {"momentum": "momentum", "moment_dtype": "accumulator_dtype"},
    "adafactor": {"beta1": "momentum", "beta2": "beta2_cap", "moment_dtype": "dtype_momentum"},
}


def _move_optimizer_options(run: dict) -> None:
    """Moves the fields beta1, beta2, momentum and moment_dtype to `optimizer.kwargs`."""
    optimizer = run.get("optimizer")
    if not isinstance(optimizer, dict):
        return
    names = _OPTIMIZER_KWARGS.get(optimizer.get("name", "adamw"), {})
    for old in ("beta1", "beta2", "momentum", "moment_dtype"):
        if old not in optimizer:
            continue
        value = optimizer.pop(old)
        if old in names:
            optimizer["kwargs"] = {**optimizer.get("kwargs", {}), names[old]: value}


# The fields that became data.augment, with their defaults.
AUGMENT_FIELDS = {
    "crop": "inception",
    "crop_area": (0.05, 1.0),
    "flip": True,
    "randaug": "none",
    "randaug_layers": 2,
    "randaug_magnitude": 10.0,
    "randaug_std": 0.0,
    "randaug_prob": 1.0,
    "three_augment": False,
    "color_jitter": 0.0,
    "random_erasing": 0.0,
}


def _join_augment(run: dict) -> None:
    """Replaces the fields of single augmentations by `data.augment`."""
    data = run.get("data")
    if not isinstance(data, dict) or data.keys().isdisjoint(AUGMENT_FIELDS):
        return
    old = {name: data.pop(name, default) for name, default in AUGMENT_FIELDS.items()}
    layers, magnitude = old["randaug_layers"], old["randaug_magnitude"]
    increasing = f"{layers},{magnitude},std={old['randaug_std']},prob={old['randaug_prob']}"
    crops = {
        "inception": "random_resized_crop({},{})".format(*old["crop_area"]),
        "resize": "resize",
        "random": "random_crop",
        "pad": "pad_crop",
    }
    randaugs = {
        "none": "",
        "published": f"randaug({layers},{magnitude})",
        "corrected": f"randaug_increasing({increasing})",
    }
    steps = (
        crops[old["crop"]],
        "flip" if old["flip"] else "",
        randaugs[old["randaug"]],
        "three_augment" if old["three_augment"] else "",
        f"color_jitter({old['color_jitter']})" if old["color_jitter"] else "",
        f"erase({old['random_erasing']})" if old["random_erasing"] else "",
    )
    data["augment"] = "|".join(filter(None, steps))


def _name_crop_rule(run: dict) -> None:
    """Replaces `inception_crop` by `random_resized_crop` in configs from when it had that rule.

    Those configs do not have the field `data.eval_resample`.
    """
    data = run.get("data")
    if not isinstance(data, dict) or "augment" not in data or "eval_resample" in data:
        return
    crop, bar, steps = data["augment"].partition("|")
    name, _, arguments = crop.strip().rstrip(") ").partition("(")
    if name.strip() == "inception_crop":
        if not arguments or arguments.lstrip().startswith("max_area"):
            arguments = f"0.05,{arguments}"  # The default of its smallest area.
        data["augment"] = f"random_resized_crop({arguments.rstrip(',')}){bar}{steps}"


# Each edits the nested dictionary of one run in place, if it has fields of an earlier version.
UPGRADES: tuple[Callable[[dict], None], ...] = (
    _move_optimizer_options,
    _name_crop_rule,
    _join_augment,
)


def upgrade(values: dict) -> dict:
    """Returns the values of a `config.json`, one run or one with stages, in today's fields.

    Raises ConfigError for old fields with impossible values.
    """
    if isinstance(values.get("stages"), dict) and values["stages"]:
        return values | {"stages": {name: upgrade(run) for name, run in values["stages"].items()}}
    run = {name: dict(v) if isinstance(v, dict) else v for name, v in values.items()}
    for edit in UPGRADES:
        try:
            edit(run)
        except (TypeError, KeyError, ValueError, IndexError) as error:
            raise ConfigError(
                "config has fields of an earlier version of vit_jax with values that are invalid "
                f"there ({type(error).__name__}: {error})."
            ) from error
    return run


def hint(field: str) -> str:
    """Returns ` Use NEW.` for a field of an earlier version such as `data.crop`, or ``.

    A name without a section, such as `crop`, matches that field of any section.
    """
    matches = (new for old, new in RENAMED.items() if field in (old, old.rpartition(".")[2]))
    new = next(matches, None)
    return f" Use {new}." if new else ""
