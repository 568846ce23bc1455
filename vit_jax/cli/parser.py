"""The command line: its verbs, their flags and their help."""

import argparse

from vit_jax.cli import costs, files, runs
from vit_jax.cli.costs import short_fields
from vit_jax.cli.runs import protocol_options
from vit_jax.errors import ConfigError

__all__ = ["make_parser", "protocol_options", "short_fields", "split_config_flags"]


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line instead of a page."""

    def error(self, message: str):
        raise ConfigError(f"{message}. See --help.")


def split_config_flags(argv: list[str]) -> tuple[list[str], str | None, dict[str, str]]:
    """Other arguments, the FILE[:ARG] of --config, and the KEY: TEXT of --config.KEY=TEXT."""
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


def make_parser() -> Parser:
    """The verbs, their flags, and an example of each."""
    parser = Parser(
        prog="vit_jax",
        description="The Vision Transformer: pre-train, fine-tune, evaluate, predict, convert.",
        epilog="`vit_jax VERB --help` tells more. No verb means train.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  python -m vit_jax.main {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
        return verb

    for add_verb in (
        runs.train,
        runs.evaluate,
        runs.features,
        runs.figures,
        runs.predict,
        files.inspect,
        files.convert,
        files.models,
        files.tables,
        files.prepare,
        runs.report,
        costs.plan,
        costs.benchmark,
    ):
        add_verb(add)
    return parser
