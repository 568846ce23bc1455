"""The command line: verbs, their flags and their help."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable

from vit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Verb:
    """One command: its flags and the function that runs it."""

    name: str
    summary: str  # A verb phrase in lower case.
    example: str  # Arguments of an example.
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., int]  # (arguments, FILE of --config or None, overrides) -> exit code


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str):
        raise ConfigError(f"{message}. See --help.")


def split_config_flags(argv: list[str]) -> tuple[list[str], str | None, dict[str, str]]:
    """Returns the other arguments, the FILE[:ARGS] of --config, and the --config.KEY=TEXT."""
    rest, file, overrides = [], None, {}
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        if flag != "--config" and not flag.startswith("--config."):
            rest.append(argument)
            continue
        if not equals:
            text = next(arguments, None)
            if text is None:
                raise ConfigError(f"{flag} needs a value, as in {flag}=VALUE.")
        if flag == "--config":
            file = text
        else:
            overrides[flag.removeprefix("--config.")] = text
    return rest, file, overrides


def make_parser(verbs: Iterable[Verb]) -> Parser:
    """Returns the parser of all verbs."""
    parser = Parser(
        prog="vit-jax",
        description="Vision Transformers in JAX: train, evaluate, predict, convert.",
        epilog="`vit-jax COMMAND --help` lists the flags of a command. The default is train.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb in verbs:
        subparser = subparsers.add_parser(
            verb.name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            epilog=f"example:\n  python -m vit_jax.main {verb.name} {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        subparser.add_argument(
            "--debug", action="store_true", help="print the traceback of an error"
        )
        verb.add_flags(subparser)
    return parser
