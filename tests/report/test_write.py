"""The verb `report`: what stands in a page, and that it is what the files of the run say."""

import csv
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.written_pages import Page, train
from vit_jax import config as config_lib
from vit_jax import main
from vit_jax.checkpoints import workdir
from vit_jax.data import loader
from vit_jax.data.preprocess import from_unit_range
from vit_jax.errors import ConfigError
from vit_jax.report import curves as curves_lib
from vit_jax.report import sections as h
from vit_jax.training import metrics

ALWAYS = {"repeat-it", "curves", "inputs", "parameters", "config", "environment"}
BY_MODEL = {"predictions", "attention", "position-embeddings"}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> pathlib.Path:
    """A run with the pages that training has left."""
    return train(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def whole(quickstart, tmp_path_factory) -> pathlib.Path:
    """The same with whole pages, for which the models were run."""
    folder = tmp_path_factory.mktemp("whole") / "quickstart"
    shutil.copytree(quickstart, folder)
    assert main.run(["report", str(folder)]) == 0
    return folder


def test_training_ends_with_a_page_for_each_stage_and_one_that_compares_them(quickstart):
    for name in ("pretrain", "finetune", "scratch"):
        page = Page(quickstart / name / "report.html")
        assert page.sections == ALWAYS | {"what-the-model-sees"}
        assert "finished" in page.said
    page = Page(quickstart / "report.html")
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"{name}/report.html" for name in ("pretrain", "finetune", "scratch")]


def test_a_whole_page_has_what_the_model_sees(whole):
    page = Page(whole / "finetune" / "report.html")
    assert page.sections == ALWAYS | BY_MODEL
    summary = json.loads((whole / "finetune" / "summary.json").read_text())
    assert f"{100 * summary['metrics']['val/top1']:.2f} % val/top1, n=359" in page.said
    assert len(page.text) < 3_000_000


def test_curves_are_the_lines_of_the_metrics(whole):
    found = Page(whole / "finetune" / "report.html").charts()
    history = metrics.read(whole / "finetune")
    for title, names in {
        "Loss": ["train/loss", "val/loss"],
        "Accuracy": ["train/top1", "val/top1"],
        "Learning rate": ["train/lr"],
        "Gradient norm": ["train/grad_norm"],
        "Images a second": ["train/img_per_sec"],
        "Where the time goes": ["train/data_wait", "train/device", "train/host"],
    }.items():
        assert sorted(found[title]) == names
        for name in names:
            wanted = {line["step"]: line[name] for line in history if name in line}
            assert found[title][name] == pytest.approx(wanted, rel=1e-5)


def test_a_long_curve_is_thinned_and_keeps_its_spikes_and_its_end(monkeypatch):
    monkeypatch.setattr(curves_lib, "MOST_POINTS", 10)
    losses = {step: 1.0 / step for step in range(1, 38)} | {11: 7.0, 37: 0.027}
    history = [{"step": step, "train/loss": loss} for step, loss in losses.items()]
    short = [line for line in history if line["step"] % 3 == 0 and line["step"] < 20]
    runs = {"long": SimpleNamespace(history=history), "short": SimpleNamespace(history=short)}
    (found,) = curves_lib.of_runs(runs)
    ends = [1, 8, 9, 16, 17, 24, 25, 32, 33, 37]  # Of stretches of 8 steps.
    assert found["steps"] == ends
    long, short = (each["values"] for each in found["series"])
    expected = [1, 1 / 8, 7, 1 / 16, 1 / 17, 1 / 24, 1 / 25, 1 / 32, 1 / 33, 0.027]
    np.testing.assert_allclose(long, expected, rtol=1e-5)
    np.testing.assert_allclose(short[:6], [1 / 3, 1 / 6, 1 / 9, 1 / 15, 1 / 18, 1 / 18], rtol=1e-5)
    assert short[6:] == [None] * 4


def test_inputs_are_the_first_batch_as_the_first_step_had_it(whole):
    from vit_jax.data.sources import open_training
    from vit_jax.training import build

    folder = whole / "finetune"
    config = workdir.read_config(folder)[""]
    source, size = open_training(config.data), config.data.image_size
    order = loader.make_order(source, config.seed)
    shown = Page(folder / "report.html").images()[:12]
    for place, image in enumerate(shown):
        index = order[place]
        random = np.random.default_rng((config.seed, 0, index))
        recipe = build.train_recipe(config.data, (size, size))
        np.testing.assert_array_equal(
            image, from_unit_range(recipe(source[index]["image"], random))
        )


def test_predictions_and_confusion_are_those_of_evaluate(whole, tmp_path):
    folder = whole / "finetune"
    assert main.run(["evaluate", f"--workdir={folder}", f"--out={tmp_path}"]) == 0
    with open(tmp_path / "predictions-val.csv") as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if row["label"] != row["prediction"]]
    right = [row for row in rows if row["label"] == row["prediction"]]
    surest = max(wrong, key=lambda row: float(row["probability"]))
    least = min(right, key=lambda row: float(row["probability"]))
    page = Page(folder / "report.html")
    said = page.said[page.said.index("Wrong, the surest first") :]
    word = f"{100 * float(surest['probability']):.0f} %, is {surest['label']}"
    assert said.removeprefix("Wrong, the surest first ").startswith(
        f"{surest['prediction']}  {word}"
    )
    after = said[said.index("Right, the least sure first") :]
    word = f"{least['prediction']}  {100 * float(least['probability']):.0f} %"
    assert after.removeprefix("Right, the least sure first ").startswith(word)
    with open(tmp_path / "confusion-val.csv") as file:
        _, *counts = csv.reader(file)
    table = page.text[page.text.index('class="confusion"') :]
    table = table[: table.index("</table>")]
    cells = [line.split("</td>")[:-1] for line in table.split("</tr>")[1:-1]]
    found = [[cell.rpartition(">")[2] or "0" for cell in line] for line in cells]
    assert found == [row[1:] for row in counts]


def test_positions_are_shown_before_and_after_fine_tuning_alone(whole):
    page = Page(whole / "finetune" / "report.html")
    assert len(page.images("before")) == len(page.images("after")) == 1
    assert not np.array_equal(page.images("before")[0], page.images("after")[0])
    page = Page(whole / "pretrain" / "report.html")
    assert not page.images("before")
    assert len(page.images("after")) == 1


def test_attention_darkens_images_and_never_brightens_them(whole):
    page = Page(whole / "finetune" / "report.html")
    seen = page.images("attention")
    assert len(seen) == 6
    everything = page.images()
    for after in seen:
        place = next(
            i
            for i, each in enumerate(everything)
            if each is not after and np.array_equal(each, after)
        )
        before = everything[place - 1]
        assert (after.astype(int) <= before).all()
        assert after.max() > 0


def killed(whole, folder, *, keep_checkpoints: bool = True):
    """A copy of a run as a kill in the middle of a line leaves it."""
    shutil.copytree(whole / "finetune", folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    if not keep_checkpoints:
        shutil.rmtree(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    return folder


def test_a_run_that_was_killed_has_its_page(whole, tmp_path):
    folder = killed(whole, tmp_path / "killed")
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.sections == ALWAYS | BY_MODEL
    assert "stopped" in page.said
    assert "of 20 steps" in page.said
    assert list(page.charts()["Loss"]["train/loss"]) == [1, 5]


def test_a_run_that_was_killed_before_its_first_checkpoint_has_its_page(whole, tmp_path):
    folder = killed(whole, tmp_path / "killed", keep_checkpoints=False)
    (folder / "metrics.jsonl").unlink()
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.sections == ALWAYS | {"what-the-model-sees"}
    assert "No step has been logged yet" in page.said
    assert "contains no checkpoint" in page.said


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_works_at_is_called_running(whole, tmp_path):
    folder = killed(whole, tmp_path / "running")
    command = [sys.executable, "-c", HOLD, str(folder / workdir.LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as holder:
        holder.stdout.read(4)
        assert main.run(["report", "--no_model", str(folder)]) == 0
    assert "running" in Page(folder / "report.html").said


def test_data_that_have_gone_leave_the_rest_of_the_page(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole / "finetune", folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"].update(source="folder", dir=str(tmp_path / "gone"))
    (folder / "config.json").write_text(json.dumps(config))
    assert main.run(["report", "--no_model", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "gone" in page.said
    assert "Not to be had" in page.said
    assert "Loss" in page.charts()


def test_the_command_of_a_page_repeats_the_run(whole, tmp_path):
    folder = whole / "scratch"
    again = tmp_path / "again"
    page = Page(folder / "report.html")
    assert f"--config={folder}/config.json" in page.said
    assert main.run([f"--config={folder}/config.json", f"--workdir={again}"]) == 0
    mine, other = ([line["train/loss"] for line in metrics.read(each)] for each in (folder, again))
    assert mine == other
    assert workdir.read_config(again) == workdir.read_config(folder)


def test_the_command_of_a_page_finds_the_stages_that_a_run_of_a_grid_needs(whole, tmp_path):
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    run = folder / "tuned" / "grid" / "lr=0.1"
    shutil.copytree(folder / "finetune", run)
    assert main.run(["report", "--no_model", str(run)]) == 0
    assert main.run(command_of(run)) == 0
    assert again(run) == tmp_path / "whole_tuned_grid_lr=0.1_again", "where no run is counted"
    mine, other = map(metrics.read, (run, again(run)))
    assert [line["train/loss"] for line in mine] == [line["train/loss"] for line in other]

    config = json.loads((run / "config.json").read_text())
    config["task"]["teacher"] = "scratch"
    (run / "config.json").write_text(json.dumps(config))
    assert main.run(["report", "--no_model", str(run)]) == 0
    assert f"--config.task.teacher={folder / 'scratch'}" in command_of(run)


def command_of(run: pathlib.Path) -> list[str]:
    """What the page of a run says to type, without the program."""
    text = Page(run / "report.html").said
    found = re.search(r"python -m vit_jax.main( \\\n +\S+)+", text)
    return shlex.split(found[0].replace("\\\n", ""))[3:]


def again(run: pathlib.Path) -> pathlib.Path:
    (place,) = (word for word in command_of(run) if word.startswith("--workdir="))
    return pathlib.Path(place.partition("=")[2])


def test_workdirs_in_a_folder_are_found_with_their_stages_in_order(whole, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(whole, tmp_path / name)
    assert main.run(["report", "--no_model", str(tmp_path)]) == 0
    page = Page(tmp_path / "report.html")
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    stages = ("pretrain", "finetune", "scratch")
    assert links == [f"{name}/{stage}/report.html" for name in ("a", "b") for stage in stages]


def test_a_run_that_is_scored_on_nothing_is_told_so(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole / "scratch", folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["val_split"] = ""
    (folder / "config.json").write_text(json.dumps(config))
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert page.sections == ALWAYS | {"what-the-model-sees", "position-embeddings"}
    assert "its data.val_split is empty" in page.said


def test_a_json_that_is_no_config_is_refused(tmp_path):
    for text, words in (
        ("[1]", "no config"),
        ("{", "no config"),
        ('{"sed": 1}', "Did you mean seed"),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            config_lib.load(str(tmp_path / "c.json"))
    with pytest.raises(ConfigError, match=r"accepts no arguments; found 'smoke'"):
        config_lib.load(f"{tmp_path / 'c.json'}:smoke")


def test_a_comparison_has_a_curve_for_each_run_and_what_differs(quickstart, tmp_path):
    out = tmp_path / "both.html"
    folders = [str(quickstart / name) for name in ("finetune", "scratch")]
    assert main.run(["report", "--no_model", *folders, f"--out={out}"]) == 0
    page = Page(out)
    curves = page.charts()["Accuracy: val/top1"]
    assert list(curves) == ["quickstart/finetune", "quickstart/scratch"]
    rows = page.said[page.said.index("What differs") :]
    assert "init.stage" in rows
    assert '"pretrain"' in rows
    assert "optimizer.lr" not in rows


def test_a_comparison_takes_no_runs_own_page(quickstart, tmp_path, monkeypatch):
    folder = tmp_path / "quickstart"
    shutil.copytree(quickstart, folder)
    monkeypatch.chdir(folder / "finetune")
    own = (folder / "finetune" / "report.html").resolve()
    with pytest.raises(ConfigError, match="or a run's own page; name another file"):
        main.run(["report", "--no_model", ".", "../scratch", f"--out={own}"])
    assert main.run(["report", "--no_model", ".", "../scratch"]) == 0
    assert "Runs" not in Page(own).said.split()
    assert "What differs" in Page(folder / "finetune" / "comparison.html").said


def test_what_was_scored_on_a_part_of_the_training_split_is_called_dev(quickstart, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(quickstart / "scratch", folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["dev"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    assert main.run(["report", "--no_model", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "dev/top1, n=359" in page.said
    assert "val/top1" not in page.charts()["Accuracy"]


def test_a_config_json_of_another_kind_beside_the_runs_is_passed_over(quickstart, tmp_path):
    folder = tmp_path / "quickstart"
    shutil.copytree(quickstart, folder)
    for name, text in (("weights", '{"architectures": ["ViT"]}'), ("list", "[1]"), ("cut", "{")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    assert main.run(["report", "--no_model", str(folder)]) == 0
    assert not (folder / "weights" / "report.html").exists()


def test_a_device_that_cannot_be_had_leaves_the_rest_of_the_page(quickstart, tmp_path, monkeypatch):
    from vit_jax.evaluation import setup

    def busy(*_):
        raise RuntimeError("device or resource busy")

    folder = tmp_path / "run"
    shutil.copytree(quickstart / "scratch", folder)
    monkeypatch.setattr(setup, "prepare_setup", busy)
    assert main.run(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "device or resource busy" in page.said
    assert "Loss" in page.charts()


def test_a_finished_page_is_not_written_over_by_the_same_command(whole):
    page = (whole / "report.html").read_bytes()
    each = (whole / "finetune" / "report.html").read_bytes()
    assert main.run([f"--workdir={whole}"]) == 0
    assert (whole / "report.html").read_bytes() == page
    assert (whole / "finetune" / "report.html").read_bytes() == each


def test_a_page_that_cannot_be_written_fails_no_run(quickstart, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(quickstart / "scratch", folder)
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    os.utime(folder / "report.html", (0, 0))
    assert main.run([f"--workdir={folder}"]) == 0
    told = capsys.readouterr()
    assert "report.html is not written" in told.err
    assert told.out.splitlines()[-1].startswith("done: steps=20 ")


def test_one_run_goes_to_a_page_of_ones_choice_but_over_no_other_file(quickstart, tmp_path):
    run = str(quickstart / "scratch")
    for _ in range(2):
        assert main.run(["report", "--no_model", run, f"--out={tmp_path / 'one.html'}"]) == 0
        assert Page(tmp_path / "one.html").sections > {"curves"}
    (tmp_path / "notes.html").write_text("mine")
    os.mkfifo(tmp_path / "pipe.html")
    for name in ("notes", "pipe"):
        with pytest.raises(ConfigError, match=rf"{name}\.html is there and is no page"):
            main.run(["report", "--no_model", run, f"--out={tmp_path / f'{name}.html'}"])
    with pytest.raises(ConfigError, match="--out is empty"):
        main.run(["report", "--no_model", run, "--out="])


def test_a_page_that_cannot_be_written_keeps_no_other_from_it(quickstart, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(quickstart / "scratch", tmp_path / name)
    (tmp_path / "a" / "report.html").unlink()
    (tmp_path / "a" / "report.html").mkdir()
    os.utime(tmp_path / "b" / "report.html", (0, 0))
    with pytest.raises(OSError, match="Is a directory"):
        main.run(["report", "--no_model", str(tmp_path)])
    assert (tmp_path / "b" / "report.html").stat().st_mtime > 0
    assert "What differs" in Page(tmp_path / "report.html").said


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", '{"stages": 5}', "no run in it"),
        ("config.json", '{"data": 5}', "config.json: "),
        ("summary.json", '{"step": 5}', "metrics is None; the file was not written by a run"),
        (
            "summary.json",
            '{"step": 5, "metrics": {"val/top1": "x"}, "flops": 1, "seconds": {}}',
            "val/top1 is 'x'; expected a number",
        ),
    ],
)
def test_a_damaged_json_is_told_of_and_hides_no_other_run(
    quickstart, tmp_path, capsys, file, text, words
):
    for name in ("a", "b"):
        shutil.copytree(quickstart / "scratch", tmp_path / name)
    (tmp_path / "a" / file).write_text(text)
    with pytest.raises(ConfigError, match=words):
        main.run(["report", "--no_model", str(tmp_path / "a")])
    assert main.run(["report", "--no_model", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"done: {tmp_path / 'b' / 'report.html'}"


def test_a_value_that_is_no_number_leaves_a_gap(quickstart, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(quickstart / "scratch", folder)
    lines = '{"step": 1, "train/loss": "abc"}\n{"step": 2, "train/loss": NaN}\n'
    (folder / "metrics.jsonl").write_text(lines + '{"step": 3, "train/loss": 2.0}\n')
    assert main.run(["report", "--no_model", str(folder)]) == 0
    assert Page(folder / "report.html").charts()["Loss"] == {"train/loss": {3: 2.0}}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in it; a run's folder holds config\.json"):
        main.run(["report", str(tmp_path)])
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        main.run(["report", str(tmp_path / "nowhere")])


def test_nothing_of_a_run_is_taken_for_html():
    evil = '<script>alert(1)</script>"&'
    assert "<script>alert" not in h.element("p", evil, title=evil)
    assert "<script>alert" not in h.table([[evil]], [evil])
    picture = h.picture(np.zeros((2, 2, 3), np.uint8), evil, evil)
    assert "<script>alert" not in picture
    chart = {"title": evil, "unit": "number", "steps": [1], "series": []}
    assert "</script>" not in h.plots([chart], "x").replace("</script><div", "", 1)


def test_a_page_fetches_nothing(whole):
    for path in whole.rglob("report.html"):
        for tag, attributes in Page(path).tags:
            assert tag not in ("link", "iframe", "object")
            assert "src" not in attributes or attributes["src"].startswith("data:"), tag
            assert not attributes.get("href", "").startswith(("http", "//")), tag
