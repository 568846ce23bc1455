"""Text that people and spreadsheets read: lines of output, Markdown tables and CSV tables.

Names of files and classes come from outside. Everything that is printed passes through
`print_line`, `print_text`, `warn` or `warn_once`, which escape control characters.
"""

import codecs
import contextlib
import csv
import functools
import html
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence

# Names of the streams in the error of a closed pipe or a full disk.
STDOUT, STDERR = "standard output", "standard error"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # Beginnings of cells that a spreadsheet evaluates.


def printable(text: object, keep: str = "") -> str:
    """Returns text with escapes such as `\\x1b` and `\\n` for all characters that do not print.

    These are control characters, line feeds, invisible characters that change the direction of
    text, and bytes of a file name that are not UTF-8.

    Args:
      keep: characters that are not escaped.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def format_bytes(num_bytes: float) -> str:
    """Returns a size in GB or MB, with two decimals."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


def decode_text(data: bytes) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with a byte order mark, without the mark.

    Raises UnicodeDecodeError.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig")


def print_line(line: object) -> None:
    """Prints one line on standard output."""
    write(sys.stdout, printable(line) + "\n")


def print_text(text: object) -> None:
    """Prints lines, whose columns may be separated by tabs, on standard output."""
    write(sys.stdout, printable(text, keep="\n\t") + "\n")


def warn(line: object) -> None:
    """Prints one line on standard error, if it can be written."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


@functools.cache
def warn_once(line: object) -> None:
    """Prints one line as `warn`, if this process has not printed it before."""
    warn(line)


def write(stream, text: str) -> None:
    """Writes text to standard output, or error, and flushes it.

    Raises OSError with the name of the stream if it is closed, as by `head`, or on a full disk;
    later output is discarded, so that it cannot fail again while the program ends.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # Not a file, as in a notebook.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        name = STDERR if stream is sys.stderr else STDOUT
        raise OSError(error.errno, error.strerror, name) from error


def can_overwrite(stream) -> bool:
    """Returns True for the output of a notebook cell and a terminal that interprets `\\r`."""
    is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    return is_terminal or type(stream).__module__.startswith("ipykernel")


def fit_to_terminal(line: object, stream) -> str:
    """Returns a printable line, cut to the width of a terminal so that `\\r` can replace it."""
    width = shutil.get_terminal_size().columns - 1 if stream.isatty() else None
    return printable(line)[:width]


def open_standard_streams() -> None:
    """Makes standard output and error accept any text: in ASCII and Latin-1, and if closed.

    Characters that the encoding lacks are written as escapes. A closed stream becomes os.devnull,
    and its number is not given to a file that is opened later.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def markdown_table(rows: Sequence[dict]) -> str:
    """Returns rows with the same keys as a Markdown table with aligned columns.

    Floats have two decimals; None is a dash.
    """
    cells = [
        list(map(printable, rows[0])),
        *([_cell(value) for value in row.values()] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths)) for line in cells]
    rule = "-|-".join("-" * w for w in widths)
    head, *body = (f"| {line} |" for line in lines)
    return "\n".join([head, f"|-{rule}-|", *body])


def escape_markdown(text: object) -> str:
    """Returns text that Markdown shows as it is: no mark-up, HTML, link or table cell."""
    text = html.escape(printable(text), quote=False)
    return re.sub(r"[\\`*_\[\]|!#~$]", r"\\\g<0>", text)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else printable(value)


def csv_table(header: Sequence, rows: Iterable[Sequence]) -> str:
    """Returns a CSV table.

    Text that a spreadsheet would evaluate as a formula, because it begins with =, +, -, @, a tab or
    a carriage return, gets an apostrophe in front; numbers stay as they are.
    """
    lines = []
    for row in (header, *rows):
        line = io.StringIO(newline="")
        # With this terminator, the writer quotes a carriage return, too.
        csv.writer(line, lineterminator="\r\n").writerow(map(_csv_cell, row))
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def _csv_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = cell.encode(errors="backslashreplace").decode()  # A file name need not be UTF-8.
    return f"'{text}" if text.startswith(FORMULA) else text
