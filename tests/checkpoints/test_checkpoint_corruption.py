"""Corrupted workdirs of a stopped run: a resume refuses and names the damage, or loses nothing.

Each trial corrupts a copy of the workdir and resumes. The run must end with an error that names
the damage, or with the bits, records and scores of the run without a stop. Records, and a score
under a damaged name, may differ if a printed line names the file.
"""

import collections
import contextlib
import io
import json
import pathlib
import random
import shutil

import pytest

from tests.support.runs import TIMINGS, final_state, records
from vit_jax import config as config_lib
from vit_jax.checkpoints import checkpoint, layout, workdir
from vit_jax.errors import VitJaxError
from vit_jax.training import run as run_lib

NUM_FLIPS = 200
FIELDS = {
    "model.name": "vit_ti16",
    "model.patch": 7,
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.mlp_size": 32,
    "model.num_heads": 2,
    "model.dropout": 0.1,
    "data.source": "digits",
    "data.image_size": 28,
    "data.per_class": 9,
    "optimizer.lr": 0.01,
    "optimizer.warmup_steps": 5,
    "batch_size": 16,
    "steps": 24,
    "log_every": 1,
    "checkpoint_every": 6,
    "keep_last": 4,
    "eval_every": 4,
    "select": "best",
}
CKPT, LAST = "checkpoints", "checkpoints/18"


def train(folder: pathlib.Path, **fields) -> pathlib.Path:
    run_lib.train(config_lib.base_config(), folder, overrides=FIELDS | fields)
    return folder


def resume(folder: pathlib.Path, fallback: bool = False) -> str:
    """Resumes a run as `train --workdir` does; returns what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        config = config_lib.to_config_dict(workdir.read_config(folder))
        run_lib.train(config, folder, fallback=fallback)
    return out.getvalue()


def results(folder: pathlib.Path) -> dict:
    """Bits of the last state and of the best weights, records and scores of a finished run."""
    scores = json.loads((folder / "summary.json").read_text())["metrics"]
    return {
        "state": final_state(folder / CKPT),
        "best": final_state(folder / "best"),
        "records": records(folder),
        "scores": {name: value for name, value in scores.items() if name not in TIMINGS},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, pathlib.Path]:
    """A finished run, one of another seed, and the first as it was after step 18 of 24."""
    folder = tmp_path_factory.mktemp("runs")
    found = {"finished": train(folder / "finished"), "other": train(folder / "other", seed=1)}
    found["stopped"] = folder / "stopped"
    shutil.copytree(found["finished"], found["stopped"])
    shutil.rmtree(found["stopped"] / CKPT / "24")
    (found["stopped"] / "summary.json").unlink()
    return found


def outcome(folder: pathlib.Path, expected: dict, names: tuple[str, ...]) -> str:
    """Resumes a corrupted run and returns the outcome, which begins with `WRONG` if it is wrong."""
    try:
        out = resume(folder)
    except VitJaxError as error:
        is_named = any(name in str(error) for name in names) and "\n" not in str(error)
        return f"refused {error.exit_code}" if is_named else f"WRONG message: {error}"
    except Exception as error:
        return f"WRONG traceback: {type(error).__name__}: {error}"
    found = results(folder)
    best = layout.find_step_folder(folder)
    try:
        checkpoint.restore(best, checkpoint.stored_param_shapes(best))
    except VitJaxError as error:
        assert str(best) in str(error)
        return f"refused {error.exit_code} when the best weights are read"
    # Beside the scores, a summary may have values under damaged names, which are reported.
    found["scores"] = {name: found["scores"].get(name) for name in expected["scores"]}
    differing = [name for name, value in expected.items() if found[name] != value]
    if not differing:
        return "equal"
    if differing == ["records"] and any(name in out for name in names):
        return "equal, other records reported"
    return f"WRONG result: {', '.join(differing)} differ; printed {out[-600:]!r}"


def report(title: str, outcomes: dict[str, str]) -> None:
    """Prints the number of trials by outcome; fails for a wrong one."""
    counts = collections.Counter(text.partition(":")[0] for text in outcomes.values())
    print(f"{title}: {len(outcomes)} trials: {dict(counts)}")
    wrong = {name: text for name, text in outcomes.items() if text.startswith("WRONG")}
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.stress
def test_no_flipped_bit_of_a_workdir_changes_a_result_in_silence(runs, tmp_path):
    expected, random_ = results(runs["finished"]), random.Random(0)
    files = {
        part: [
            path.relative_to(runs["stopped"])
            for path in sorted((runs["stopped"] / part).rglob("*"))
            if path.is_file() and path.stat().st_size
        ]
        or [pathlib.Path(part)]
        for part in (LAST, f"{CKPT}/12", "best", "config.json", "metrics.jsonl")
    }
    parts = (
        [LAST] * 10 + [f"{CKPT}/12"] + ["best"] * 4 + ["config.json"] * 2 + ["metrics.jsonl"] * 3
    )
    outcomes = {}
    for trial in range(NUM_FLIPS):
        file = random_.choice(files[parts[trial % len(parts)]])
        folder = tmp_path / "run"
        shutil.copytree(runs["stopped"], folder)
        content = bytearray((folder / file).read_bytes())
        bit = random_.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        (folder / file).write_bytes(content)
        names = (str(folder / LAST), str(folder / "best"), "config.json", "metrics.jsonl")
        outcomes[f"{trial}: bit {bit} of {file}"] = outcome(folder, expected, names)
        shutil.rmtree(folder)
    report("flipped bits", outcomes)


def replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file or folder over another."""
    if target.is_dir():
        shutil.rmtree(target)
    elif target.exists():
        target.unlink()
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def rename(old: str, new: str):
    return lambda folder, runs: (folder / old).rename(folder / new)


def copy(source: str, target: str, run: str = ""):
    """Copies a part of the run itself or of another run."""
    return lambda folder, runs: replace((runs[run] if run else folder) / source, folder / target)


def swap(first: str, second: str):
    def apply(folder, runs):
        (folder / first).rename(folder / "swapped")
        (folder / second).rename(folder / first)
        (folder / "swapped").rename(folder / second)

    return apply


def remove(*parts: str):
    def apply(folder, runs):
        for part in parts:
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def write(part: str, text: str):
    return lambda folder, runs: (folder / part).write_text(text)


def both(*steps):
    return lambda folder, runs: [step(folder, runs) for step in steps]


def edit_config(**fields):
    def apply(folder, runs):
        path = folder / "config.json"
        values = json.loads(path.read_text())
        for name, value in fields.items():
            section, _, last = name.rpartition("__")
            (values[section] if section else values)[last] = value
        path.write_text(json.dumps(values))

    return apply


def edit_summary(**metrics):
    def apply(folder, runs):
        values = json.loads((runs["finished"] / "summary.json").read_text())
        values["metrics"] |= {name.replace("__", "/"): value for name, value in metrics.items()}
        (folder / "summary.json").write_text(json.dumps(values))

    return apply


def edit_lines(change):
    def apply(folder, runs):
        path = folder / "metrics.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return apply


def link(part: str):
    def apply(folder, runs):
        (folder / part).rename(folder / "elsewhere")
        (folder / part).symlink_to(folder / "elsewhere")

    return apply


def rename_best(step: int):
    def apply(folder, runs):
        (best,) = (folder / "best").iterdir()
        best.rename(best.with_name(str(step)))

    return apply


REFUSED = {
    "step 18 renamed to 21": rename(LAST, f"{CKPT}/21"),
    "step 18 renamed to 37": rename(LAST, f"{CKPT}/37"),
    "step 12 renamed to 19": rename(f"{CKPT}/12", f"{CKPT}/19"),
    "steps 12 and 18 swapped": swap(f"{CKPT}/12", LAST),
    "steps 6 and 18 swapped": swap(f"{CKPT}/6", LAST),
    "step 12 copied over 18": copy(f"{CKPT}/12", LAST),
    "step 18 copied as the last, 24": copy(LAST, f"{CKPT}/24"),
    "data of step 12 in 18": copy(f"{CKPT}/12/data", f"{LAST}/data"),
    "meta of step 12 in 18": copy(f"{CKPT}/12/meta", f"{LAST}/meta"),
    "state of step 12 in 18": copy(f"{CKPT}/12/state", f"{LAST}/state"),
    "manifest of step 12 in 18": copy(f"{CKPT}/12/manifest", f"{LAST}/manifest"),
    "data and manifest of step 12 in 18": both(
        copy(f"{CKPT}/12/data", f"{LAST}/data"), copy(f"{CKPT}/12/manifest", f"{LAST}/manifest")
    ),
    "all items except the state of step 12 in 18": both(
        *(copy(f"{CKPT}/12/{name}", f"{LAST}/{name}") for name in ("data", "meta", "manifest"))
    ),
    "step 18 without data": remove(f"{LAST}/data"),
    "step 18 without meta": remove(f"{LAST}/meta"),
    "step 18 without manifest": remove(f"{LAST}/manifest"),
    "step 18 without state": remove(f"{LAST}/state"),
    "step 18 empty": lambda folder, runs: [
        shutil.rmtree(folder / LAST),
        (folder / LAST).mkdir(),
    ],
    "step 18 of another seed": copy(LAST, LAST, "other"),
    "all steps of another seed": copy(CKPT, CKPT, "other"),
    "best weights of another seed": copy("best", "best", "other"),
    "best weights removed": remove("best"),
    "best weights under another step": rename_best(19),
    "best weights replaced by a checkpoint": both(remove("best"), copy(CKPT, "best")),
    "checkpoints replaced by the best weights": copy("best", CKPT),
}
EQUAL = {
    "config.json removed": remove("config.json"),
    "config.json with another learning rate": edit_config(optimizer__lr=0.5),
    "config.json with another seed": edit_config(seed=7),
    "config.json with another batch size": edit_config(batch_size=8),
    "config.json of a shorter run": edit_config(steps=12),
    "config.json of a longer run": edit_config(steps=48),
    "config.json with other data": edit_config(data__source="mnist5k"),
    "config.json cut short": write("config.json", '{"seed": 0, "batch_si'),
    "config.json of another run": copy("config.json", "config.json", "other"),
    "summary.json of the finished run": edit_summary(),
    "summary.json with a score of 1": edit_summary(val__top1=1.0),
    "summary.json cut short": write("summary.json", '{"step": 24, "metr'),
    "summary.json of another run": copy("summary.json", "summary.json", "other"),
    "step 18 removed": remove(LAST),
    "a stray file and folder among the steps": both(
        write(f"{CKPT}/99", ""),
        write(f"{CKPT}/notes.txt", ""),
        copy(f"{CKPT}/6", f"{CKPT}/step_40"),
    ),
    "step 18 is a link": link(LAST),
    "step 6 is a link": link(f"{CKPT}/6"),
    "the folder of the checkpoints is a link": link(CKPT),
    "a step that a kill has left": copy(LAST, f"{CKPT}/19.orbax-checkpoint-tmp"),
    "a line of metrics.jsonl doubled": edit_lines(lambda lines: [*lines[:5], *lines[4:]]),
    "lines of metrics.jsonl in another order": edit_lines(lambda lines: lines[::-1]),
}
REPORTED = {  # The state is equal; the lost lines are reported.
    "a line of metrics.jsonl removed": edit_lines(lambda lines: [*lines[:5], *lines[6:]]),
    "a line of metrics.jsonl damaged": edit_lines(
        lambda lines: [*lines[:5], lines[5][:20] + "\n", *lines[6:]]
    ),
    "a value of metrics.jsonl changed": edit_lines(
        lambda lines: [*lines[:5], lines[5].replace('loss": ', 'loss": 1'), *lines[6:]]
    ),
    "metrics.jsonl removed": remove("metrics.jsonl"),
    "metrics.jsonl of another run": copy("metrics.jsonl", "metrics.jsonl", "other"),
}


@pytest.mark.stress
def test_no_structural_corruption_of_a_workdir_changes_a_result_in_silence(runs, tmp_path):
    expected, outcomes = results(runs["finished"]), {}
    for start, corruptions in (
        ("refused", REFUSED),
        ("equal", EQUAL),
        ("equal, other records reported", REPORTED),
    ):
        for name, corrupt in corruptions.items():
            folder = tmp_path / "run"
            shutil.copytree(runs["stopped"], folder)
            corrupt(folder, runs)
            names = (str(folder / CKPT), str(folder / "best"), "metrics.jsonl")
            found = outcome(folder, expected, names)
            outcomes[name] = found if found.startswith(start) else f"WRONG, not {start}: {found}"
            shutil.rmtree(folder)
    report("structural corruptions", outcomes)
