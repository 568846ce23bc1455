"""Printed names, streams and CSV cells."""

import csv
import errno
import io
import os
import subprocess
import sys

import pytest

from tests.support.runs import ROOT
from vit_jax import text
from vit_jax.distributed.progress import Progress


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("Grüße 画像.png", "Grüße 画像.png"),
        ("red\x1b[31m", r"red\x1b[31m"),
        ("two\nlines\r", r"two\nlines\r"),
        ("title\x1b]0;x\x07", r"title\x1b]0;x\x07"),
        ("csi\x9b31m", r"csi\x9b31m"),
        ("gpj\u202e.exe", r"gpj\u202e.exe"),
        ("line\u2028separator", r"line\u2028separator"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\udce9.png"),
        (r"back\slash", r"back\slash"),
    ],
)
def test_printable_escapes_characters_that_a_terminal_obeys(name, printed):
    assert text.printable(name) == printed
    assert text.printable(printed) == printed


def test_progress_and_lines_escape_names(capsys):
    progress = Progress()
    progress.show("a\x1b[2J")
    progress.print_line("b\nc")
    text.print_line("d\re")
    text.print_text("f\tg\x07")
    text.warn("h\x1b")
    out, err = capsys.readouterr()
    assert out == "a\\x1b[2J\nb\\nc\nd\\re\nf\tg\\x07\n"
    assert err == "h\\x1b\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_line_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    progress = Progress()
    progress.show("x" * 100)
    progress.show("y")
    progress.print_line("z" * 100)
    assert terminal.getvalue() == (
        "\r" + "x" * 39 + "\r" + "y".ljust(39) + "\r" + " " * 1 + "\r" + "z" * 100 + "\n"
    )


def test_progress_in_a_dumb_terminal_prints_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    Progress().show("step 1")
    assert terminal.getvalue() == "step 1\n"


def test_csv_table_writes_no_formula_and_reads_back():
    names = ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "\rx", "plain", "a,b", 'c"d', "e\nf", "x=1"]
    table = text.csv_table(("id", "score"), [(name, -0.5) for name in names])
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert rows[0] == ["id", "score"]
    assert [row[0].removeprefix("'") for row in rows[1:]] == names
    assert not any(row[0].startswith(text.FORMULA) for row in rows)
    assert {row[1] for row in rows[1:]} == {"-0.5"}, "numbers stay numbers"
    undecodable = os.fsdecode(b"caf\xe9.png")
    text.csv_table(("id",), [(undecodable,)]).encode("utf-8")


def test_markdown_table_keeps_a_name_in_its_row():
    assert text.markdown_table([{"run": "a\nb"}]).splitlines()[2:] == [r"| a\nb |"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_write_names_the_stream_of_a_full_disk_once():
    with open("/dev/full", "w") as full:
        with pytest.raises(OSError, match="standard output") as caught:
            text.write(full, "x")
        assert caught.value.errno == errno.ENOSPC
        text.write(full, "y")  # Discarded.


def test_write_to_a_closed_pipe_raises_once():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        with pytest.raises(BrokenPipeError) as caught:
            text.write(pipe, "x")
        assert caught.value.filename == text.STDOUT
        text.write(pipe, "y")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command line in which `vit_jax` is the program."""
    command = command.replace("vit_jax", f"{sys.executable} -m vit_jax")
    environment = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    options = {"capture_output": True, "cwd": ROOT, "env": environment, "timeout": 120}
    return subprocess.run(["bash", "-c", command], **options)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_any_encoding_prints_an_error_with_any_name(encoding):
    done = shell("vit_jax train --workdir=Größe-画像", PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    message = done.stderr.decode(encoding)
    name = "Größe-画像".encode(encoding, "backslashreplace").decode(encoding)
    assert message.startswith(f"vit_jax: {name}")
    assert len(message.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["models", "train --help", "tables table6 --json"])
def test_a_reader_that_ends_early_ends_the_command_quietly(command):
    done = shell(f"set -o pipefail; vit_jax {command} | head -c 1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout[1:].decode().strip() in ("0", "141")
    assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["models", "train --help", "plan --config=configs/pretrain.py"])
def test_a_full_disk_under_standard_output_is_named(command):
    done = shell(f"vit_jax {command} > /dev/full")
    assert done.returncode == 4
    message = done.stderr.decode()
    assert message == "vit_jax: standard output: No space left on device.\n"


@pytest.mark.slow
def test_closed_streams_change_no_exit_code():
    assert shell("vit_jax models >&-").returncode == 0
    assert shell("vit_jax models <&- >&- 2>&-").returncode == 0
    assert shell("vit_jax train --workdir=nowhere 2>&-").returncode == 2
    assert shell("vit_jax train --workdir=nowhere 2>/dev/full").returncode == 2


@pytest.mark.slow
def test_training_into_a_reader_that_ends_early_is_resumed(tmp_path):
    config = "--config=configs/mnist5k.py:smoke --config.log_every=1 --config.checkpoint_every=10"
    train = f"vit_jax {config} --workdir={tmp_path}/w"
    done = shell(f"set -o pipefail; {train} | head -3; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.decode().splitlines()[-1] == "141"
    assert done.stderr == b""
    assert shell(train).stdout.decode().splitlines()[-1].startswith("done: steps=20 ")


@pytest.mark.slow
def test_workdir_that_is_not_utf_8_is_refused_before_it_exists(tmp_path):
    for name, variables in ((r"caf\xe9", {}), ("ü", {"LC_ALL": "C", "PYTHONUTF8": "0"})):
        command = f"vit_jax --config=configs/quickstart.py:smoke --workdir=$'{tmp_path}/{name}'"
        done = shell(command, PYTHONCOERCECLOCALE="0", **variables)
        assert done.returncode == 2, done.stderr
        assert b"the path of a workdir must be UTF-8" in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["0", "1", "40", "-5", "x"])
def test_help_fits_any_terminal(columns):
    done = shell("vit_jax train --help", COLUMNS=columns, TERM="dumb")
    assert done.returncode == 0
    assert b"--workdir" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense", "cpu,nonsense", "rocm"])
def test_a_platform_that_is_not_installed_is_named(platform, tmp_path):
    flags = f"--config=configs/quickstart.py:smoke --workdir={tmp_path / 'w'}"
    done = shell(f"vit_jax {flags}", JAX_PLATFORMS=platform)
    message = done.stderr.decode()
    assert done.returncode == 2, message
    lines = [line for line in message.splitlines() if line.startswith("vit_jax: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"vit_jax: JAX_PLATFORMS={platform}: JAX cannot use it")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_decode_text_reads_byte_order_marks(encoding):
    assert text.decode_text("ä\r\nb\n".encode(encoding)) == "ä\r\nb\n"
