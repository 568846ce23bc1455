"""The verbs `evaluate` and `features`: subsets of classes, sets of labels, sizes, protocols."""

import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import main
from vit_jax.errors import ConfigError, DataError

DIGITS = ("--config.data.source=digits", "--config.batch_size=64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on digits, 8 by 8 pixels."""
    folder = tmp_path_factory.mktemp("run")
    file = folder.parent / "digits.py"
    file.write_text(
        '"""Digits."""\nfrom vit_jax.config import base_config\n\n\ndef get_config(arg=None):\n'
        "    config = base_config()\n"
        "    config.model.update(name='vit_ti16', patch=4, num_layers=1, hidden_size=32)\n"
        "    config.model.update(mlp_size=64, num_heads=2)\n"
        "    config.data.update(source='digits', image_size=8, augment='resize')\n"
        "    config.optimizer.lr = 3e-3\n"
        "    config.update(batch_size=64, steps=60)\n"
        "    return config\n"
    )
    assert main.run([f"--config={file}", f"--workdir={folder}"]) == 0
    return folder


def evaluate(run, out, *flags: str, capsys) -> str:
    assert main.run(["evaluate", f"--workdir={run}", f"--out={out}", *flags]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def report(folder, name: str = "eval-val") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder with images of three of the digits, under other names."""
    from vit_jax.config.schema import Data
    from vit_jax.data.sources import open_split

    folder, source = tmp_path_factory.mktemp("few"), open_split(Data(source="digits"), "val")
    for i in range(len(source)):
        title = {3: "three", 1: "one", 7: "seven"}.get(source[i]["label"])
        if title:
            place = folder / "val" / title
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source[i]["image"]).save(place / f"{i:03}.png")
    return folder


@pytest.mark.slow
def test_the_report_holds_integers_and_every_mean(run, tmp_path, capsys):
    line = evaluate(run, tmp_path, capsys=capsys)
    found = report(tmp_path)
    assert (found["n"], found["size"]) == (359, 359)
    assert found["correct"] == round(found["top1"] * 359)
    assert line == f"top1={found['top1']:.4f} top5={found['top5']:.4f} n=359/359"
    assert 0.5 < found["mean_per_class"] < 1
    assert 0 < found["ece"] < 0.5


@pytest.mark.slow
def test_classes_of_a_subset_are_mapped_and_alone_predicted(run, few, tmp_path, capsys):
    names = tmp_path / "map.txt"
    names.write_text("1\n7\n3\n")  # Of one, seven, three: the order of their folders.
    flags = ("--config.data.source=folder", f"--config.data.dir={few}", f"--class_map={names}")
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    evaluate(run, whole, *flags, capsys=capsys)
    evaluate(run, alone, *flags, "--restrict", capsys=capsys)
    lines = (alone / "predictions-val.csv").read_text().splitlines()[1:]
    assert {line.split(",")[2] for line in lines} <= {"1", "3", "7"}
    assert report(alone)["correct"] >= report(whole)["correct"]
    evaluate(run, tmp_path / "all", capsys=capsys)
    digits = (tmp_path / "all" / "predictions-val.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in digits]
    expected = sum(label == found for _, label, found, _ in rows if label in "137")
    assert report(whole)["correct"] == expected


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("1\n7\n", "has 2 lines; expected 3"),
        (
            "1\n7\n10\n",
            "line 3: '10' is no class of the model; expected a name, or a number from 0 to 9",
        ),
    ],
)
@pytest.mark.slow
def test_a_class_map_that_does_not_fit_is_refused(run, few, tmp_path, lines, words):
    (tmp_path / "map.txt").write_text(lines)
    flags = ["--config.data.source=folder", f"--config.data.dir={few}"]
    with pytest.raises(ConfigError, match=words):
        main.run(["evaluate", f"--workdir={run}", *flags, f"--class_map={tmp_path / 'map.txt'}"])


@pytest.mark.slow
def test_classes_that_training_never_saw_need_a_map(run, few):
    flags = ["--config.data.source=folder", f"--config.data.dir={few}"]
    with pytest.raises(DataError, match=r"'one' of the data is not among the 10.*--class_map"):
        main.run(["evaluate", f"--workdir={run}", *flags])


@pytest.mark.slow
def test_sets_of_labels_take_any_of_them_and_leave_out_empty_ones(run, tmp_path, capsys):
    evaluate(run, tmp_path, capsys=capsys)
    rows = (tmp_path / "predictions-val.csv").read_text().splitlines()[1:]
    found = [int(row.split(",")[2]) for row in rows]
    sets = [[k, (k + 1) % 10] for k in found]  # All right ...
    sets[0], sets[1], sets[2] = [], [(found[1] + 1) % 10], []  # ... but one; two do not count.
    (tmp_path / "real.json").write_text(json.dumps(sets))
    line = evaluate(run, tmp_path, f"--label_sets={tmp_path / 'real.json'}", capsys=capsys)
    assert line.startswith(f"top1={356 / 357:.4f} ")
    assert line.endswith("n=357/357")
    assert report(tmp_path)["label_sets"]["correct"] == 356


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[1]]", "holds 1 entries; the split has 359"),
        ("{}", "holds no list"),
        ("[[1", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (json.dumps([[1]] * 358 + [[10]]), r"entry 358 is \[10\]"),
    ],
)
@pytest.mark.slow
def test_sets_of_labels_that_do_not_fit_are_refused(run, tmp_path, text, words):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(DataError, match=words):
        main.run(["evaluate", f"--workdir={run}", f"--label_sets={tmp_path / 'real.json'}"])


@pytest.mark.slow
def test_any_image_size_and_several_crops_can_be_evaluated(run, tmp_path, capsys):
    assert main.run(
        ["evaluate", f"--workdir={run}", f"--out={tmp_path}", "--config.data.image_size=16"]
    ) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "position embeddings resized from 2x2 to 4x4" in out
    assert "n=359/359" in out
    crops = ("--config.data.eval_crop=center", "--config.data.eval_crops=5")
    assert evaluate(run, tmp_path, *crops, capsys=capsys).endswith("n=359/359")


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """What `features` writes of both splits: features and labels of each."""
    folder, found = tmp_path_factory.mktemp("features"), []
    for split in ("train", "val"):
        flags = [f"--out={folder / split}.npz", f"--config.data.split={split}"]
        assert main.run(["features", f"--checkpoint={run}", *flags]) == 0
        with np.load(folder / f"{split}.npz") as file:
            assert file["names"].tolist() == [str(i) for i in file["names"].astype(int)]
            assert file["classes"].tolist() == list("0123456789")
            found += [file["features"], file["labels"]]
    return found


@pytest.mark.slow
def test_features_are_written_once_each_in_either_form(run, written, tmp_path, capsys):
    _, _, features, labels = written
    assert features.shape == (359, 32)
    assert features.dtype == np.float32
    path = tmp_path / "val.array_record"
    assert main.run(["features", f"--checkpoint={run}", f"--out={path}", "--half"]) == 0
    assert capsys.readouterr().out.endswith("pre_logits 359 x 32 float16 n=359/359\n")
    about = json.loads((tmp_path / "val.array_record.json").read_text())
    reader = ArrayRecordReader(str(path))
    rows = [np.frombuffer(record, about["dtype"]) for record in reader.read_all()]
    np.testing.assert_array_equal(rows, features.astype(np.float16))
    assert about["labels"] == labels.tolist()
    assert about["shape"] == [32]


@pytest.mark.slow
def test_features_go_to_a_new_file_of_a_known_kind(run, tmp_path):
    (tmp_path / "there.npz").write_text("")
    for name, words in (("x.csv", "ends in"), ("there.npz", "exists"), ("no/x.npz", "no folder")):
        with pytest.raises(ConfigError, match=words):
            main.run(["features", f"--checkpoint={run}", f"--out={tmp_path / name}"])


@pytest.mark.slow
def test_few_shot_is_the_ridge_of_scikit_learn_on_the_images_drawn(run, written, tmp_path, capsys):
    features, labels, test, test_labels = written
    flags = ("--protocol=fewshot", "--shots=5", "--seeds=2", *DIGITS)
    line = evaluate(run, tmp_path, *flags, capsys=capsys)
    found, correct = report(tmp_path, "fewshot-val"), []
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        drawn = np.concatenate(
            [random.permutation(np.where(labels == k)[0])[:5] for k in range(10)]
        )
        mean, deviation = features[drawn].mean(0), features[drawn].std(0) + 1e-5

        def of(x, mean=mean, deviation=deviation):
            return np.hstack([(x - mean) / deviation, np.full((len(x), 1), 100.0)])

        ridge = Ridge(alpha=2**10, fit_intercept=False, solver="svd")
        ridge.fit(of(features[drawn]), 2.0 * np.eye(10)[labels[drawn]] - 1)
        correct.append(int((ridge.predict(of(test)).argmax(1) == test_labels).sum()))
    assert found["5shot"]["correct"] == correct
    assert found["num_seen"] < 101, "others are not even read"
    assert line.startswith(f"5shot={np.mean(correct) / 359:.4f}+-")
    assert line.endswith(f"seeds=2 smallest_class={np.bincount(labels).min()} n=359/359")


@pytest.mark.slow
def test_neighbours_are_those_of_scikit_learn(run, written, tmp_path, capsys):
    features, labels, test, test_labels = written
    evaluate(run, tmp_path, "--protocol=knn", "--neighbours=1,5", capsys=capsys)
    for k in (1, 5):
        theirs = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(features, labels)
        score = (theirs.predict(test) == test_labels).mean()
        assert report(tmp_path, "knn-val")[f"{k}nn"] == pytest.approx(score, abs=0.002)


@pytest.mark.slow
def test_a_probe_of_features_does_better_than_chance(run, tmp_path, capsys):
    line = evaluate(run, tmp_path, "--protocol=probe", "--l2=1e-3", capsys=capsys)
    assert report(tmp_path, "probe-val")["top1"] > 0.8
    assert line.startswith("top1=0.")
    assert "l2=0.001 n=359/359" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--protocol=knn", "--shots=5"], "knn accepts --layer, --neighbours, not --shots"),
        (["--restrict", "--protocol=probe"], "probe accepts --layer, --l2, not --restrict"),
        (["--protocol=probe", "--layer=tokens"], "which has many tokens"),
        (["--protocol=knn", "--config.data.split=val"], "expected two splits"),
        (["--protocol=fewshot", "--shots=0"], "not a whole number of at least 1"),
        (["--protocol=probe", "--l2=-1"], "not a list of positive numbers"),
    ],
)
@pytest.mark.slow
def test_flags_that_do_not_belong_are_told(run, flags, words):
    with pytest.raises(ConfigError, match=words):
        main.run(["evaluate", f"--workdir={run}", *flags])


@pytest.mark.stress
def test_the_runs_of_a_sweep_are_named_and_their_dev_part_is_scored_again(tmp_path, capsys):
    flags = ["--config=configs/transfer.py:smoke", f"--workdir={tmp_path}"]
    sweep = ["--config.sweep.grid=(('optimizer.lr',(0.1,)),)", "--config.sweep.dev=0.2"]
    assert main.run([*flags, *sweep]) == 0
    with pytest.raises(ConfigError, match=r"is a sweep with the runs seed_0; give one"):
        main.run(["evaluate", f"--workdir={tmp_path}"])
    run = tmp_path / "grid" / "lr=0.1"
    assert main.run(["evaluate", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out.endswith("n=288/288\n"), "a fifth of 1,438"
    scored = json.loads((run / "summary.json").read_text())["metrics"]
    assert json.loads((run / "eval-dev.json").read_text())["top1"] == scored["val/top1"]


@pytest.mark.slow
def test_nothing_is_scored_where_results_cannot_go(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        main.run(["evaluate", f"--workdir={run}", f"--out={tmp_path / 'file'}"])
