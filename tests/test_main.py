"""Each mistake ends in one line and its exit code, with the workdir unchanged."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest
from PIL import Image

from tests.support.config_mistakes import CONFIG_MISTAKES, TINY
from tests.support.runs import ROOT, run_main
from vit_jax import main
from vit_jax.errors import ConfigError, Note, VitJaxError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A config file of a run of two seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The workdir of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    assert main.run([f"--config={tiny}", f"--workdir={folder}"]) == 0
    return folder


def mistake(*arguments) -> VitJaxError:
    with pytest.raises(VitJaxError) as caught:
        main.run([str(argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    return caught.value


MESH_OF_EIGHT = [
    ("batch_size=12", "batch_size 12 is not divisible by 8 devices; nearest: 8, 16"),
    ("mesh.fsdp=3", "does not fit 8 devices; data x fsdp x tensor can be 8x1x1, 4x2x1"),
]


@pytest.mark.parametrize(
    ("overrides", "words"), CONFIG_MISTAKES + MESH_OF_EIGHT, ids=lambda text: text[:30]
)
def test_config_mistakes_are_told_in_one_line(tiny, tmp_path, overrides, words):
    flags = [f"--config.{override}" for override in overrides.split()]
    error = mistake(f"--config={tiny}", f"--workdir={tmp_path / 'w'}", *flags)
    assert error.exit_code == 2
    assert words in str(error)
    assert not (tmp_path / "w").exists()


def test_there_are_a_hundred_config_mistakes():
    assert len({overrides for overrides, _ in CONFIG_MISTAKES}) >= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "--workdir=w"], "Did you mean train?"),
        (["--workdir=w", "--steps=3"], "unrecognized arguments: --steps=3"),
        (["--config=configs/quikstart.py", "--workdir=w"], "Did you mean configs/quickstart.py?"),
        (["--config=configs/quickstart.py:smok", "--workdir=w"], "Did you mean smoke?"),
        (["--config=configs/quickstart.py", "--workdir=w", "--config.batch_size=8"], "stages"),
        (["--config=configs/quickstart.py"], "--workdir"),
        (["evaluate"], "expected one of --workdir=DIR and --checkpoint=WHERE; found neither"),
        (["predict", "a.jpg"], "expected one of --workdir=DIR and --checkpoint=WHERE; found nei"),
        (["features", "--out=x.npz", "--workdir=a", "--checkpoint=b"], "found both"),
        (["predict", "--checkpoint=x", "--config.steps=1", "a.jpg"], "does not accept --config"),
        (["--workdir=nowhere"], "contains no config.json"),
        (["--config=a.py", "--config=b.py", "--workdir=w"], "--config is given twice, 'a.py' and"),
        (["--config.seed=1", "--config.seed=2", "--workdir=w"], "--config.seed is given twice"),
        (["--config=a.py", "--workdir=w", "--workdir", "x"], "--workdir is given twice"),
        (
            ["--config=configs/cifar10.py", "--workdir=w", "--config.steps=5", "--config.epochs=1"],
            "--config.steps and --config.epochs: set one of them",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_flag_mistakes_are_told_in_one_line(arguments, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    error = mistake(*arguments)
    assert error.exit_code == 2
    assert words in str(error)


def test_a_mistake_inside_a_config_file_names_the_file(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(TINY.replace("config.model.num_heads", "config.model.num_haeds"))
    error = mistake(f"--config={path}", f"--workdir={tmp_path / 'w'}")
    assert error.exit_code == 2
    assert "wrong.py" in str(error)
    assert "num_heads" in str(error)


def picture(path, size=28):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), 99, np.uint8)).save(path)


def folder_run(tiny, root, workdir):
    return (
        f"--config={tiny}",
        f"--workdir={workdir}",
        "--config.data.source=folder",
        f"--config.data.dir={root}",
    )


def test_folder_mistakes_are_told_before_the_workdir_exists(tiny, tmp_path):
    workdir, root = tmp_path / "w", tmp_path / "photos"

    def words() -> str:
        error = mistake(*folder_run(tiny, root, workdir))
        assert error.exit_code == 3
        assert not workdir.exists()
        return str(error)

    assert "no such folder" in words()
    root.mkdir()
    assert "no class folders" in words()
    picture(root / "train" / "cat" / "1.png")
    assert "only the class 'cat'" in words()
    picture(root / "train" / "dog" / "1.png")
    picture(root / "val" / "dgo" / "1.png")
    assert "class 'dgo' is not among the 2 classes" in words()
    assert "Did you mean dog?" in words()


def test_an_unreadable_image_is_named_when_it_is_read(tiny, tmp_path):
    root = tmp_path / "photos"
    for title in ("cat", "dog"):
        for i in range(6):
            picture(root / "train" / title / f"{i}.png")
            picture(root / "val" / title / f"{i}.png")
    (root / "train" / "dog" / "3.png").write_bytes(b"<html>not found</html>")
    error = mistake(*folder_run(tiny, root, tmp_path / "w"))
    assert error.exit_code == 3
    assert f"{root}/train/dog/3.png: unreadable image" in str(error)


def test_a_workdir_of_another_config_is_refused_and_the_fields_named(tiny, finished):
    before = sorted(finished.rglob("*"))
    error = mistake(
        f"--config={tiny}",
        f"--workdir={finished}",
        "--config.optimizer.lr=0.5",
        "--config.model.dropout=0.5",
    )
    assert error.exit_code == 2
    assert "model.dropout, optimizer.lr" in str(error)
    assert sorted(finished.rglob("*")) == before


def test_what_may_change_on_resume_is_not_refused(tiny, finished, capsys):
    free = ["--config.log_every=3", "--config.checkpoint_every=1", "--config.data.workers=1"]
    assert main.run([f"--config={tiny}", f"--workdir={finished}", *free]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("done: steps=4 ")


def test_predict_of_a_workdir_equals_that_of_its_checkpoint(finished, tmp_path, capsys):
    picture(tmp_path / "a\x1b[31m.png")
    outputs = []
    for flag in (f"--workdir={finished}", f"--checkpoint={finished}"):
        assert main.run(["predict", flag, str(tmp_path), "--top=1"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    path, label, probability = outputs[0].rstrip("\n").split("\t")
    assert path == rf"{tmp_path}/a\x1b[31m.png"
    assert label.startswith("class ")
    assert 0 < float(probability) <= 1


def test_a_finished_run_ends_with_the_line_of_the_contract(finished, capsys):
    assert main.run([f"--workdir={finished}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    top1 = json.loads((finished / "summary.json").read_text())["metrics"]["val/top1"]
    assert line == f"done: steps=4 val/top1={top1:.4f} n=24/24 workdir={finished}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.hidden_size=32"], "cls is (1, 1, 16) in the weights and (1, 1, 32) in the model"),
        (["model.num_layers=2"], "Transformer/encoderblock_1/LayerNorm_0/bias is missing"),
        (
            ["data.image_size=42", "init.resize=False"],
            "position grid is 4x4 in the weights and 6x6 in the model",
        ),
        (["data.num_classes=5", "init.new_head=False"], "init.new_head=True permits a new one"),
    ],
    ids=["width", "depth", "grid", "classes"],
)
def test_weights_that_do_not_fit_are_refused(tiny, finished, tmp_path, overrides, words):
    fields = {"init.path": finished, "init.new_head": True, "init.resize": True}
    fields |= dict(override.split("=") for override in overrides)
    error = mistake(
        f"--config={tiny}",
        f"--workdir={tmp_path / 'w'}",
        *(f"--config.{field}={value}" for field, value in fields.items()),
    )
    assert error.exit_code == 4
    assert words in str(error)
    assert not (tmp_path / "w").exists()


def test_missing_weights_never_become_random_ones(tiny, tmp_path):
    flags = (f"--config={tiny}", f"--workdir={tmp_path / 'w'}")
    for path, words in (("nowhere", "no such file, folder or"), ("nowhere.npz", "no such file")):
        error = mistake(*flags, f"--config.init.path={path}")
        assert error.exit_code == 4
        assert words in str(error)


def test_evaluate_writes_what_it_counts(finished, capsys):
    assert main.run(["evaluate", f"--workdir={finished}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    report = json.loads((finished / "eval-val.json").read_text())
    assert line == f"top1={report['top1']:.4f} top5=1.0000 n=24/24"
    rows = (finished / "predictions-val.csv").read_text().splitlines()
    assert rows[0] == "id,label,prediction,probability"
    assert len(rows) == 25
    assert {row.split(",")[1] for row in rows[1:]} == {"class 0", "class 1", "class 2"}
    per_class = (finished / "per_class-val.csv").read_text().splitlines()
    assert per_class[0] == "class,n,correct,top1"
    assert sum(int(row.split(",")[1]) for row in per_class[1:]) == 24
    confusion = (finished / "confusion-val.csv").read_text().splitlines()
    counts = [[int(cell) for cell in row.split(",")[1:]] for row in confusion[1:]]
    assert np.trace(counts) == round(report["top1"] * 24)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.mixup=0.5", "--config.data.mixup has no effect on evaluate, which does not train"),
        ("data.crop_fraction=0.9", "which has no effect without data.eval_crop='center'"),
        ("data.dataset=cifar10", "config.data.dataset is 'cifar10', which has no effect without"),
    ],
)
def test_evaluate_refuses_values_without_effect(finished, override, words):
    error = mistake("evaluate", f"--workdir={finished}", f"--config.{override}")
    assert error.exit_code == 2
    assert words in str(error)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 23])
def test_evaluate_counts_every_example_once(finished, size, capsys):
    flags = ["evaluate", f"--workdir={finished}", f"--config.data.num_examples={size}"]
    assert main.run(flags) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"n={size}/{size}")


def test_predict_labels_what_it_can_and_tells_of_the_rest(finished, photo_folder, capsys):
    (photo_folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    where = f"--checkpoint={finished}"
    broken = str(photo_folder / "broken.jpg")
    code = main.run(["predict", where, broken, str(photo_folder / "val"), "--top=2"])
    printed = capsys.readouterr()
    assert code == 3
    assert "broken.jpg: unreadable image" in printed.err
    rows = [line.split("\t") for line in printed.out.splitlines()]
    assert len(rows) == 2 * 14
    assert all(len(row) == 3 and row[1].startswith("class ") for row in rows)
    assert float(rows[0][2]) >= float(rows[1][2])


def test_class_names_end_no_cell_and_steer_no_terminal(finished, photo_folder, tmp_path, capsys):
    file = str(next((photo_folder / "val").rglob("*.jpg")))
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"a\tb\x1b[2J{k}\n" for k in range(3)))
    flags = [f"--checkpoint={finished}", f"--classes={names}", file, "--top=1"]
    assert main.run(["predict", *flags]) == 0
    path, title, _ = capsys.readouterr().out.split("\t")
    assert path == file
    assert title.startswith(r"a\tb\x1b[2J")


def test_predict_speaks_json(finished, photo_folder, capsys):
    file = str(next((photo_folder / "val").rglob("*.jpg")))
    assert main.run(["predict", f"--checkpoint={finished}", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == file
    assert sum(each["probability"] for each in found["predictions"]) == pytest.approx(1, abs=1e-4)


def test_inspect_lists_every_array_and_the_config(finished, capsys):
    assert main.run(["inspect", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "params/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel" in out
    assert "16x32  float32" in out
    assert "step: 4" in out
    assert main.run(["inspect", str(finished / "checkpoints" / "2"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["step"] == 2
    assert facts["config"]["steps"] == 4
    assert facts["data"]["examples_seen"] == 16
    assert facts["parameters"] == sum(
        np.prod(leaf["shape"], dtype=int)
        for name, leaf in facts["leaves"].items()
        if name.startswith("params/")
    )


@pytest.mark.parametrize("verb", [[], ["train"], ["evaluate"], ["predict"], ["inspect"]])
def test_help_is_complete_and_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main.run([*verb, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "COMMAND" in out if not verb else "python -m vit_jax.main" in out


def test_the_process_ends_with_the_code_and_one_line(tiny, tmp_path):
    done = run_main(f"--config={tiny}", f"--workdir={tmp_path / 'w'}", "--config.batch_size=0")
    assert done.code == 2
    assert done.error == "vit_jax: config.batch_size is 0; it must be at least 1."
    assert done.out == ""


def test_help_and_config_mistakes_import_no_jax():
    code = textwrap.dedent(
        """
        import sys
        from vit_jax import main
        try:
            main.run(["--config=configs/quickstart.py", "--workdir=w", "--config.sed=1"])
        except Exception as error:
            assert error.exit_code == 2, error
        assert "jax" not in sys.modules and "tensorflow" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{file}"],
        ["predict", "--checkpoint={file}", "x.jpg"],
        ["evaluate", "--checkpoint={file}"],
        ["convert", "{file}", "x.safetensors"],
        ["--config=configs/quickstart.py", "--workdir={folder}/w", "{init}={file}"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_hostile_file_is_refused_before_jax_is_imported(tmp_path, arguments):
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, **{"embedding/kernel": np.zeros((16, 16, 3, 50_000), np.float32)})
    init = "--config.stages.pretrain.init.path"
    given = [each.format(file=file, folder=tmp_path, init=init) for each in arguments]
    code = textwrap.dedent(
        f"""
        import sys
        from vit_jax import main
        try:
            main.run({given!r})
        except Exception as error:
            assert error.exit_code == 4, error
            assert "bomb.npz" in str(error)
        else:
            raise AssertionError
        assert "jax" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert list(tmp_path.iterdir()) == [file]


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    for verb in (["inspect"], ["convert", "--format=npz"]):
        error = mistake(*verb, tmp_path / "x.npz", *(["y.npz"] if len(verb) > 1 else []))
        assert error.exit_code == 4
        assert "not a regular file" in str(error)


def test_a_system_without_file_locks_is_reported_in_one_line():
    program = (
        "import runpy, sys; sys.modules['fcntl'] = None; sys.argv[1:] = ['models'];"
        "runpy.run_module('vit_jax', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "vit_jax: only Linux and macOS are supported; on Windows, use WSL 2.\n"


def test_a_ctrl_c_that_python_ignores_is_repeated():
    """Python ignores exceptions in callbacks of the garbage collector, such as those of JAX."""
    # The shell ignores SIGINT in processes that it starts in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            main.repeat_interrupt(types.SimpleNamespace(exc_type=KeyboardInterrupt))
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_ends_with_the_notes_of_this_package_alone():
    error = ConfigError("steps is 0.")
    error.add_note("--------------------\nFor simplicity, a library has removed its frames.")
    error.add_note(Note("Step 3 is saved."))
    assert main._message(error) == "steps is 0. Step 3 is saved."
