"""What the text of a flag may be."""

import argparse


def window(text: str) -> tuple[int, int]:
    """The first and the number of steps."""
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(first) and int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STEPS, two numbers of at least 1")
    return int(first), int(count)


def shard(text: str) -> tuple[int, int]:
    """The process and how many there are."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, as in 0/4 to 3/4")
    return int(index), int(count)


def seconds(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 on")
    return int(text)


def mesh(text: str) -> dict[str, str]:
    """data:4,fsdp:2 as fields of a config."""
    pairs = [item.partition(":") for item in text.split(",")]
    return {f"mesh.{axis}": size for axis, _, size in pairs}


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return share


def counts(text: str) -> tuple[int, ...]:
    """1,5,10: whole numbers from 1 on."""
    return tuple(positive(part) for part in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """0.1,1e-3: numbers above 0."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not one or more numbers above 0")
    return found
