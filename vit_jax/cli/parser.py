"""The command line: verbs, their flags and their help."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable

from vit_jax.config.fields import expand_home
from vit_jax.config.schema import is_path_field
from vit_jax.data.object_store import is_url
from vit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Verb:
    """One command: its flags and the function that runs it."""

    name: str
    summary: str  # A verb phrase in lower case.
    example: str  # Arguments of an example.
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., int]  # (arguments, FILE of --config or None, overrides) -> exit code


class StoreOnce(argparse.Action):
    """Stores the value of a flag; an error if the flag is given twice."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string is not None and self.dest in parser.given:
            parser.error(f"{option_string} is given twice; give it once")
        parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.given: set[str] = set()  # Destinations of the flags on the command line.
        self.register("action", None, StoreOnce)
        self.register("action", "store", StoreOnce)

    def error(self, message: str):
        raise ConfigError(f"{message}. See --help.")


def split_config_flags(argv: list[str]) -> tuple[list[str], str | None, dict[str, str]]:
    """Returns the other arguments, the FILE[:ARGS] of --config, and the --config.KEY=TEXT.

    A leading `~` of a value becomes the home directory: a shell does not expand `--flag=~/folder`.
    Raises ConfigError for a flag that is given twice, because only one could have an effect, and
    for an empty argument, such as that of a shell variable that is not set.
    """
    rest, file, overrides = [], None, {}
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, text = argument.partition("=")
        if flag != "--config" and not flag.startswith("--config."):
            rest.append(_checked(argument))
            continue
        if not equals:
            text = next(arguments, None)
            if text is None:
                raise ConfigError(f"{flag} needs a value, as in {flag}=VALUE.")
        text, key = expand_home(text), flag.removeprefix("--config.")
        if not text and (flag == "--config" or is_path_field(key)):
            raise ConfigError(f"{flag} is empty; give it a value, or leave it out.")
        if flag == "--config":
            first, file = file, text
        else:
            first, overrides[key] = overrides.get(key), text
        if first is not None:
            raise ConfigError(f"{flag} is given twice, {first!r} and {text!r}; give it once.")
    return rest, file, overrides


def _checked(argument: str) -> str:
    """Returns an argument with a leading `~` expanded; rejects an empty one."""
    flag, equals, value = (
        argument.partition("=") if argument.startswith("--") else ("", "", argument)
    )
    if not value and (equals or not flag):
        raise ConfigError(f"{flag or 'an argument'} is empty; give it a value, or leave it out.")
    if flag == "--out" and is_url(value):
        raise ConfigError(f"{argument} is a URL; give a local path, and copy the files from there.")
    return f"{flag}{equals}{expand_home(value)}"


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
