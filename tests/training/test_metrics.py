"""One line per step in metrics.jsonl, whatever was killed and restored on the way."""

import io
import json
import math
import typing

import numpy as np
import pytest

from vit_jax.distributed.progress import Progress
from vit_jax.training import metrics
from vit_jax.training.metrics import MetricWriter


@pytest.fixture(autouse=True)
def _without_tensorboard(monkeypatch):
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, restored_step: None)


def lines(folder) -> list[str]:
    return (folder / metrics.FILE).read_text().splitlines()


def write(folder, *steps, restored_step=0):
    writer = MetricWriter(folder, restored_step)
    for step in steps:
        writer.write(step, {"loss": step / 10})
    writer.close()


def test_a_step_is_one_line_whatever_is_written_for_it(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(5, {"train/loss": 2.5})
    writer.write(5, {"val/top1": 0.25, "val/n": 7})
    writer.write(10, {"train/loss": 1.5})
    writer.close()
    assert [json.loads(line) for line in lines(tmp_path)] == [
        {"step": 5, "train/loss": 2.5, "val/top1": 0.25, "val/n": 7},
        {"step": 10, "train/loss": 1.5},
    ]


def test_counts_stay_whole_and_arrays_become_numbers(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"crc": 2**32 - 1, "loss": np.float32(0.5)})
    writer.close()
    assert lines(tmp_path) == ['{"step": 1, "crc": 4294967295, "loss": 0.5}']


def test_what_is_not_finite_becomes_null(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -np.float32(np.inf), "d": 0.0})
    writer.close()
    strict = json.loads(lines(tmp_path)[0], parse_constant=pytest.fail)
    assert strict == {"step": 1, "a": None, "b": None, "c": None, "d": 0.0}


def test_lines_beyond_the_restored_step_are_cut(tmp_path):
    write(tmp_path, 5, 10, 15, 20)
    write(tmp_path, 15, restored_step=12)
    assert [record["step"] for record in metrics.read(tmp_path)] == [5, 10, 15]


def test_a_new_run_begins_with_an_empty_file(tmp_path):
    write(tmp_path, 5, 10)
    write(tmp_path)
    assert lines(tmp_path) == []


def test_records_without_a_checkpoint_are_removed_with_a_note(tmp_path):
    writer = MetricWriter(tmp_path)
    assert writer.notes == []
    writer.write(7, {"train/loss": 1.0})
    writer.close()
    again = MetricWriter(tmp_path)
    again.close()
    assert metrics.read(tmp_path) == []
    (note,) = again.notes
    assert "no checkpoint was found, so the records up to step 7 are removed" in note


def test_the_line_of_the_restored_step_takes_the_evaluation_still_to_come(tmp_path):
    write(tmp_path, 5, 10)
    writer = MetricWriter(tmp_path, restored_step=10)
    assert not writer.values(10, "val")
    writer.write(10, {"val/n": 7})
    assert writer.values(10, "val")
    assert not writer.values(10, "fewshot")
    assert not writer.values(5, "val")
    writer.write(15, {"loss": 1.5})
    writer.close()
    assert metrics.read(tmp_path) == [
        {"step": 5, "loss": 0.5},
        {"step": 10, "loss": 1.0, "val/n": 7},
        {"step": 15, "loss": 1.5},
    ]


def test_the_line_of_the_restored_step_outlives_a_writer_with_nothing_to_add(tmp_path):
    write(tmp_path, 5, 10)
    write(tmp_path, restored_step=10)
    assert [record["step"] for record in metrics.read(tmp_path)] == [5, 10]


def test_the_line_of_the_restored_step_outlives_a_kill_right_after_the_restore(tmp_path):
    write(tmp_path, 5, 10)
    killed = MetricWriter(tmp_path, restored_step=10)
    assert [record["step"] for record in metrics.read(tmp_path)] == [5, 10]
    killed.close()


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, 5, 10)
    path = tmp_path / metrics.FILE
    path.write_text(path.read_text() + '{"step": 15, "lo')
    assert [record["step"] for record in metrics.read(tmp_path)] == [5, 10]
    write(tmp_path, 15, restored_step=10)  # And is gone when the run goes on.
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [5, 10, 15]


def test_what_was_synced_is_there_to_read(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(5, {"loss": 0.5})
    writer.sync()
    assert metrics.read(tmp_path) == [{"step": 5, "loss": 0.5}]
    writer.close()
    assert len(lines(tmp_path)) == 1


def test_tensorboard_gets_every_value_once(tmp_path, monkeypatch):
    class Board:
        scalars: typing.ClassVar = []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def flush(self): ...
        def close(self): ...

    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, restored_step: Board())
    writer = MetricWriter(tmp_path)
    writer.write(5, {"train/loss": 0.5})
    writer.sync()
    writer.write(5, {"val/n": 7})
    writer.close()
    assert Board.scalars == [("train/loss", 0.5, 5), ("val/n", 7, 5)]


def test_log_of_a_compiled_step_has_no_rate(tmp_path, capsys):
    log = metrics.TrainingLog(tmp_path, "", total_steps=9, batch_size=4)
    log.open(0)
    log.clock.lap("data")
    log.log(1, {"loss": 2.0}, is_timed=False)
    log.clock.lap("train")
    log.log(2, {"loss": 1.5})
    log.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/9  loss 2.0000"
    assert second.startswith("step 2/9  loss 1.5000  ")
    assert " img/s  data wait " in second
    compiled, timed = metrics.read(tmp_path)
    assert "train/img_per_sec" not in compiled
    assert timed["train/img_per_sec"] > 0
    for record in (compiled, timed):
        shares = [record[f"train/{name}"] for name in ("data_wait", "device", "host")]
        assert sum(shares) == pytest.approx(1)


def test_a_folder_without_metrics_has_no_records(tmp_path):
    assert metrics.read(tmp_path) == []


def test_the_last_value_of_each_name_counts():
    records = [{"step": 1, "loss": 3, "val/top1": 0.5}, {"step": 2, "loss": 2}]
    assert metrics.last_values(records) == {"step": 2, "loss": 2, "val/top1": 0.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_per_state_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    progress = Progress()
    progress.show("step 1")
    progress.show("step 2")
    progress.print_line("saved")
    assert stream.getvalue() == "step 1\nstep 2\nsaved\n"


def test_lines_may_be_kept_apart_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    progress = Progress(seconds_between=3600)
    progress.show("step 1")
    progress.print_line("saved")  # Whatever is said is said.
    assert stream.getvalue() == "saved\n"


def test_progress_replaces_its_line_on_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    progress = Progress(seconds_between=3600)
    progress.show("step 10")
    progress.show("step 9")
    assert stream.getvalue() == "\rstep 10\rstep 9 "  # A blank hides the longer line's end.
    progress.print_line("saved")
    assert stream.getvalue().endswith("\rsaved\n")


def test_the_line_of_the_restored_step_stands_until_a_fuller_one_takes_its_place(tmp_path):
    first = MetricWriter(tmp_path)
    first.write(5, {"train/loss": 0.5})
    first.close()
    writer = MetricWriter(tmp_path, restored_step=5)
    writer.write(5, {"val/n": 3})
    assert metrics.read(tmp_path) == [{"step": 5, "train/loss": 0.5}]  # What a kill would leave.
    writer.write(6, {"train/loss": 0.4})
    assert metrics.read(tmp_path) == [{"step": 5, "train/loss": 0.5, "val/n": 3}]
    writer.close()
    assert [record["step"] for record in metrics.read(tmp_path)] == [5, 6]


def test_every_line_that_can_be_read_stays_and_the_others_are_named(tmp_path):
    write(tmp_path, 5, 10, 15, 20)
    before = lines(tmp_path)
    damaged = [before[0], before[1][:-4] + "\x00", "[5]", '{"step": true}', *before[2:]]
    (tmp_path / metrics.FILE).write_text("\n".join(damaged) + "\n")
    assert [record["step"] for record in metrics.read(tmp_path)] == [5, 15, 20]
    writer = MetricWriter(tmp_path, restored_step=15)
    writer.close()
    assert lines(tmp_path) == [before[0], before[2]]
    (note,) = writer.notes
    assert "metrics.jsonl: line 2, 3, 4 cannot be read; a copy is in" in note
    assert (tmp_path / "damaged" / metrics.FILE).read_text().splitlines() == damaged


def test_a_file_that_windows_has_saved_keeps_all_lines(tmp_path):
    path = tmp_path / metrics.FILE
    path.write_bytes(b'\xef\xbb\xbf{"step": 1, "a": 2}\r\n{"step": 2, "a": 3}\r\n')
    assert metrics.read(tmp_path) == [{"step": 1, "a": 2}, {"step": 2, "a": 3}]


def test_a_repeated_step_becomes_one_line_in_the_order_of_steps(tmp_path):
    write(tmp_path, 5, 10)
    first, second = lines(tmp_path)
    extra = '{"step": 5, "val/n": 3}'
    (tmp_path / metrics.FILE).write_text("\n".join([first, second, second, extra]) + "\n")
    writer = MetricWriter(tmp_path, restored_step=10)
    writer.close()
    assert lines(tmp_path) == ['{"step": 5, "loss": 0.5, "val/n": 3}', second]
    assert "line 3, 4 repeats an earlier step" in writer.notes[0]


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ('{"step": 5, "loss": 0.5}\n', "", "2 of 3 lines up to step 15 remain."),
        ('"step": 5', '"step": 45', "2 of 3 lines up to step 15 remain."),
        ("0.5", "0.4", "lines up to step 15 were changed after that step was saved."),
        ("1.5", "1.6", "lines up to step 15 were changed after that step was saved."),
        (
            '"loss": 1.0',
            '"lost": 1.0',
            "lines up to step 15 were changed after that step was saved.",
        ),
        ('"val/n": 3', '"val/n": 4', None),  # An evaluation after the checkpoint.
    ],
)
def test_lines_that_the_checkpoint_contradicts_are_reported(tmp_path, old, new, note):
    writer = MetricWriter(tmp_path)
    for step in (5, 10, 15):
        writer.write(step, {"loss": step / 10})
    recorded = writer.digest()._asdict()
    writer.write(15, {"val/n": 3})
    writer.close()
    assert MetricWriter(tmp_path, 15, recorded).notes == []
    path = tmp_path / metrics.FILE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    notes = MetricWriter(tmp_path, 15, recorded).notes
    assert notes == ([f"{path}: {note}"] if note else [])


def test_a_record_that_begins_after_the_checkpoint_is_no_difference(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(10, {"loss": 1.0})
    recorded = writer.digest()._asdict()  # Of the checkpoint of step 12.
    writer.write(12, {"val/n": 3})
    writer.close()
    resumed = MetricWriter(tmp_path, 12, recorded)
    assert resumed.notes == []
    assert resumed.values(12, "val") == {"n": 3}


def test_the_digest_of_a_resumed_writer_is_that_of_one_without_a_stop(tmp_path):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    write(tmp_path / "resumed", 5, 10)
    whole, resumed = MetricWriter(tmp_path / "whole"), MetricWriter(tmp_path / "resumed", 10)
    for step in (5, 10):
        whole.write(step, {"loss": step / 10})
    for writer in (whole, resumed):
        writer.write(10, {"val/n": 3})
        writer.sync()
        writer.write(15, {"loss": 1.5})
    assert whole.digest() == resumed.digest()
    assert whole.digest()[0] == 3


def test_a_synced_record_takes_more_values_in_the_same_line(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(5, {"loss": 0.5})
    writer.sync()
    writer.write(5, {"val/n": 3})
    writer.sync()
    assert lines(tmp_path) == ['{"step": 5, "loss": 0.5, "val/n": 3}']
    writer.write(10, {"loss": 1.0})
    writer.close()
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [5, 10]


def test_a_record_of_step_0_is_kept_without_a_checkpoint(tmp_path):
    write(tmp_path, 0, 1)
    writer = MetricWriter(tmp_path)
    assert not any("changed" in note for note in writer.notes)
    writer.close()
    assert metrics.read(tmp_path) == [{"step": 0, "loss": 0.0}]
