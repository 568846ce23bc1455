"""Types and help texts that several commands share."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

from vit_jax.config.schema import Data
from vit_jax.errors import ConfigError

WHERE = (
    "a workdir, a stage's folder, its checkpoints folder, a step's folder, an .npz or .safetensors "
    "file, a Hugging Face folder, a URL (https, gs, s3, hf, file), or a published name; "
    "FILE:OPTION=VALUE,... adds options that a file lacks, as in vit.safetensors:num_heads=12"
)
LAYER = "pre_logits (default), token (class token), mean (mean of the patch tokens)"


def add_where(parser) -> None:
    """Adds `--workdir` and `--checkpoint`, of which a command needs one."""
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder of a run; in place of --checkpoint"
    )
    parser.add_argument("--checkpoint", metavar="WHERE", help=WHERE)


def where(args) -> str:
    """Returns the workdir or checkpoint given, after a check of a file of weights."""
    if bool(args.workdir) == bool(args.checkpoint):
        found = "both" if args.workdir else "neither"
        raise ConfigError(f"expected one of --workdir=DIR and --checkpoint=WHERE; found {found}.")
    check_weights_file(args.checkpoint)
    return args.workdir or args.checkpoint


def add_max_megapixels(parser) -> None:
    """Adds `--max_megapixels` of commands that read images without a config."""
    (field,) = (each for each in dataclasses.fields(Data) if each.name == "max_megapixels")
    most = field.metadata["most"]
    parser.add_argument(
        "--max_megapixels",
        type=number_up_to(most),
        default=Data.max_megapixels,
        metavar="N",
        help=f"largest image to read, in millions of pixels (default {Data.max_megapixels:g})",
    )


def add_data_overrides(parser) -> None:
    """Adds `--config.data.KEY` to the help; `parser.split_config_flags` parses it."""
    parser.add_argument(
        "--config.data.KEY",
        metavar="VALUE",
        help="set a field of the data, such as data.split, the split to read",
    )


def positive_int(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_ints(text: str) -> tuple[int, ...]:
    """Parses whole numbers of at least 1, such as 1,5,10."""
    return tuple(positive_int(part) for part in text.split(","))


def positive_float(text: str) -> float:
    """Parses a positive number, such as 16 or 0.5."""
    try:
        (number,) = positive_floats(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number") from None
    return number


def positive_floats(text: str) -> tuple[float, ...]:
    """Parses positive numbers, such as 0.1,1e-3."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers")
    return numbers


SECONDS_OF_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Parses a duration such as 90s, 30m, 2h or 1.5d into seconds."""
    try:
        seconds = float(text[:-1]) * SECONDS_OF_UNIT[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a positive duration with a unit, as in 90s, 30m, 2h or 1.5d"
        )
    return seconds


def mtbf(text: str) -> tuple[float, bool]:
    """Parses DURATION or DURATION/device; returns seconds, and True if they are of one device."""
    time, slash, unit = text.partition("/")
    if slash and unit != "device":
        raise argparse.ArgumentTypeError(f"{text!r} is not DURATION or DURATION/device, as in 2h")
    return duration(time), bool(slash)


def number_up_to(most: float) -> Callable[[str], float]:
    """Returns the parser of a number above 0 and at most `most`."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most {most}")
        return number

    return parse


def step_range(text: str) -> tuple[int, int]:
    """Parses START:STEPS, the first step and the number of steps."""
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(first) and int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STEPS, two numbers of at least 1")
    return int(first), int(count)


def shard(text: str) -> tuple[int, int]:
    """Parses I/N, the index of a process and the number of processes."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, as in 0/4 to 3/4")
    return int(index), int(count)


def mesh(text: str) -> dict[str, str]:
    """Parses data:4,fsdp:2 into config fields."""
    pairs = [item.partition(":") for item in text.split(",")]
    return {f"mesh.{axis}": size for axis, _, size in pairs}


def environment_variable(text: str) -> tuple[str, str]:
    """Parses KEY=VALUE."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def check_weights_file(where: str | None) -> None:
    """Raises CheckpointError for a damaged or hostile file, before slow imports."""
    path = pathlib.Path(where or ".")
    if path.exists() and not path.is_dir():
        from vit_jax.weights.weights_folder import open_weights

        open_weights(path)


def refuse_config(verb: str, file: str | None, overrides=()) -> None:
    """Raises ConfigError for a `--config` flag of a command that takes none."""
    if file is not None or overrides:
        flag = "--config" if file is not None else f"--config.{next(iter(overrides))}"
        raise ConfigError(f"{verb} does not accept {flag}; see {verb} --help.")
