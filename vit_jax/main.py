"""The command line: runs a command, and turns errors into one line and an exit code.

python -m vit_jax [COMMAND] --flags        (the default command is train)
"""

import gc
import os
import signal
import sys
import threading
import traceback

from vit_jax.errors import (
    CheckpointError,
    ConfigError,
    HostError,
    VitJaxError,
    is_out_of_memory,
    nearest,
    notes_of,
)
from vit_jax.text import STDOUT, open_standard_streams, warn, write

try:
    from vit_jax.atomic_io import FULL
    from vit_jax.cli import costs, evaluation, launch, parser, prepare, results, train, weights
except ModuleNotFoundError as error:
    if error.name != "fcntl":
        raise
    warn("vit_jax: only Linux and macOS are supported; on Windows, use WSL 2.")
    sys.exit(ConfigError.exit_code)
except KeyboardInterrupt:
    warn("vit_jax: interrupted")
    sys.exit(128 + signal.SIGINT)

# Objects between garbage collections. Imports and tracing make millions of objects that stay: with
# Python's default of 700 (2,000 from 3.13 on), a tenth of the time to the first step is collection.
GC_THRESHOLD = 50_000

VERBS = {
    verb.name: verb
    for verb in (
        train.TRAIN,
        launch.LAUNCH,
        evaluation.EVALUATE,
        evaluation.FEATURES,
        results.FIGURES,
        evaluation.PREDICT,
        weights.INSPECT,
        weights.CONVERT,
        weights.MODELS,
        results.TABLES,
        prepare.PREPARE,
        results.REPORT,
        costs.PLAN,
        costs.BENCHMARK,
    )
}


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code; raises VitJaxError for a user's error."""
    gc.set_threshold(GC_THRESHOLD)
    rest, file, overrides = parser.split_config_flags(argv)
    if rest and not rest[0].startswith("-") and rest[0] not in VERBS:
        raise ConfigError(
            f"unknown command {rest[0]!r}; expected one of {', '.join(VERBS)}."
            f"{nearest(rest[0], VERBS)}"
        )
    if not rest or rest[0] not in (*VERBS, "--help", "-h"):
        rest = ["train", *rest]
    args = parser.make_parser(VERBS.values()).parse_args(rest)
    return VERBS[args.verb].run(args, file, overrides)


def main() -> None:
    """Console script: prints one line for a user's error and exits with its code."""
    argv = sys.argv[1:]
    open_standard_streams()
    sys.unraisablehook = repeat_interrupt
    try:
        try:
            code = run(argv)
        finally:  # Of --help, too; at the exit of Python, an error could not be reported.
            write(sys.stdout, "")
        sys.exit(code)
    except (VitJaxError, OSError, KeyboardInterrupt) as error:
        _exit(_message(error), _exit_code(error), argv)
    except Exception as error:
        from vit_jax.distributed import multihost

        if not is_out_of_memory(error):
            if multihost.is_lost_process(error):
                _exit(f"lost connection to another process: {error}", HostError.exit_code, argv)
            if problem := _device_problem(error):
                _exit(problem, ConfigError.exit_code, argv)
            multihost.exit_all(traceback.format_exc(), 1)
            raise  # A bug: with its traceback, and exit code 1.
        advice = "use a smaller batch_size, model or image_size"
        _exit(f"out of memory; {advice} ({error}).", ConfigError.exit_code, argv)


def repeat_interrupt(unraisable) -> None:
    """Repeats a Ctrl-C that Python ignores in a callback, such as JAX's of garbage collections."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _exit(message: str, code: int, argv: list[str]) -> None:
    if "--debug" in argv:
        traceback.print_exc()
    line = " ".join(message.split())
    if "jax" in sys.modules:  # Otherwise no other process has been started.
        from vit_jax.distributed import multihost

        multihost.exit_all(line, code)  # Exits here if there are several processes.
    if code != 128 + signal.SIGPIPE:
        warn(f"vit_jax: {line}")
    sys.exit(code)


def _message(error: BaseException) -> str:
    message = str(error) or "interrupted"
    if isinstance(error, OSError):  # Disk full, permission denied, a file instead of a folder.
        is_no_folder = isinstance(error, FileExistsError)  # An existing folder is no error.
        reason = "a file; expected a folder" if is_no_folder else error.strerror or error
        message = f"{error.filename or 'input or output'}: {reason}."
    return " ".join([message, *notes_of(error)])


def _device_problem(error: Exception) -> str:
    """Returns the message if JAX cannot use the devices of this machine, or ''."""
    reason = str(error) if str(error).startswith("Unable to initialize backend") else None
    if reason is None and "jax" in sys.modules:
        import jax

        try:
            jax.devices()
        except (RuntimeError, AssertionError) as again:  # The second for JAX_PLATFORMS=cuda.
            reason = str(again)
    if reason is None:
        return ""
    reason = reason.partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    reason = f": {reason}" if reason else ""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return (
            f"JAX_PLATFORMS={platforms}: JAX cannot use it on this machine{reason}. Unset it, or "
            "set it to an installed platform that has a device, such as cpu."
        )
    return f"JAX cannot use the devices of this machine{reason}."


def _exit_code(error: BaseException) -> int:
    if isinstance(error, BrokenPipeError) and error.filename == STDOUT:
        return 128 + signal.SIGPIPE  # The reader of the output has ended, as `head` does.
    if isinstance(error, OSError):
        return (CheckpointError if error.errno in FULL else ConfigError).exit_code
    return error.exit_code if isinstance(error, VitJaxError) else 128 + signal.SIGINT


if __name__ == "__main__":
    main()
