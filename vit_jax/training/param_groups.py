"""Groups of parameters by name: layers, factors by regular expression, frozen parameters."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

from vit_jax.config.schema import Optimizer
from vit_jax.errors import ConfigError

Factors = Sequence[tuple[str, float]]

FREEZE = r"all but head|first ([1-9]\d{0,3}) blocks?|all but last ([1-9]\d{0,3}) blocks?"
HEAD = r"(head|head_dist|class_head|patch_head)/"
AFTER_ENCODER = rf"(Transformer/encoder_norm|fc_norm|projection|pre_logits|MAPHead_0)/|{HEAD}"
BLOCK = r"Transformer/encoderblock_(\d+)/"


def normalize_freeze(value: str, place: str) -> str:
    """Returns a value of `optimizer.freeze` in its usual spelling; raises ConfigError."""
    text = " ".join(value.lower().split())
    if text and not re.fullmatch(FREEZE, text):
        raise ConfigError(
            f"{place} is {value!r}; expected 'all but head', 'first N blocks', 'all but last N "
            "blocks', or '' for none."
        )
    return text


def factor_of(name: str, factors: Factors) -> float:
    """Returns the factor of the first pattern that matches a name, or 1."""
    return first_match(name, factors, 1.0)


def first_match(name: str, values: Sequence[tuple[str, float]], default: float) -> float:
    """Returns the value of the first pattern that matches a name, or the default."""
    return next((value for pattern, value in values if re.search(pattern, name)), default)


def module_of(name: str) -> str:
    """Returns the head that a parameter belongs to, or "encoder"."""
    head = re.match(HEAD, name)
    return head[1] if head else "encoder"


def layer_of(name: str, num_layers: int) -> int:
    """Returns 0 before the encoder, i + 1 in encoderblock_i, num_layers + 1 after the encoder."""
    if block := re.match(BLOCK, name):
        return int(block[1]) + 1
    return num_layers + 1 if re.match(AFTER_ENCODER, name) else 0


def num_layers_of(names: Collection[str]) -> int:
    """Returns the number of encoder layers of a model with these parameters."""
    return max((layer_of(name, 0) for name in names if re.match(BLOCK, name)), default=0)


def frozen_names(config: Optimizer, names: Collection[str]) -> set[str]:
    """Returns the names of the parameters that `freeze` or a factor of 0 excludes from training."""
    frozen = {name for name in names if not factor_of(name, config.lr_factors)}
    if config.freeze == "all but head":
        return frozen | {name for name in names if not re.match(HEAD, name)}
    if config.freeze:
        last = _last_frozen_layer(config.freeze, num_layers_of(names))
        return frozen | {name for name in names if layer_of(name, 10**6) <= last}
    return frozen


def _last_frozen_layer(freeze: str, num_layers: int) -> int:
    first, last = re.fullmatch(FREEZE, freeze).groups()
    return int(first) if first else num_layers - int(last)


def check_groups(config: Optimizer, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError for patterns that match no parameter, and if all are frozen.

    Args:
      config: the section of the optimizer.
      shapes: shapes of the parameters by name.
    """
    for field in ("lr_factors", "decay_factors", "freeze_steps"):
        _check_patterns(f"config.optimizer.{field}", getattr(config, field), shapes)
    num_layers = num_layers_of(shapes)
    numbers = [int(n) for n in re.findall(r"\d+", config.freeze)]
    if any(number > num_layers for number in numbers):
        raise ConfigError(
            f"config.optimizer.freeze is {config.freeze!r}; the model has only {num_layers} blocks."
        )
    if len(frozen_names(config, shapes)) == len(shapes):
        raise ConfigError(
            "config.optimizer.lr_factors has factor 0 for every parameter, so nothing is trained. "
            "A pattern matches anywhere in a name; '^' is the start, as in '^(?!head/)'. To train "
            "the head only, use optimizer.freeze='all but head'."
        )


def _check_patterns(place: str, factors: Factors, names: Collection[str]) -> None:
    left = set(names)
    for pattern, _ in factors:
        found = {name for name in names if re.search(pattern, name)}
        if not found & left:
            reason = (
                "matches only parameters that an earlier pattern matches"
                if found
                else f"matches no parameter; the parameters are {_examples(names)}"
            )
            raise ConfigError(f"{place}: {pattern!r} {reason}.")
        left -= found


def _examples(names: Collection[str]) -> str:
    """Returns the first parts of names, and the names inside of one encoder layer."""
    layer = [name for name in names if "encoderblock_0/" in name][:2]
    tops = dict.fromkeys(name for name in names if not name.startswith("Transformer/encoderb"))
    return ", ".join([*list(tops)[:4], *layer, "..."])


def count_trained(config: Optimizer, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Returns the numbers of values that are trained and that are frozen."""
    frozen = frozen_names(config, shapes)
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    num_frozen = sum(counts[name] for name in frozen)
    return sum(counts.values()) - num_frozen, num_frozen
