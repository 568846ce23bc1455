"""Every command on images without classes, and the errors of those that need classes."""

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import final_state
from tests.support.tiny_flags import tiny_flags
from vit_jax import main
from vit_jax.errors import DataError

MAE = (
    *("task.name=mae", "task.decoder_layers=1", "task.decoder_size=16", "task.decoder_heads=2"),
    *("model.num_heads=2", "data.image_size=32", "model.patch=8"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images in nested folders."""
    root = tmp_path_factory.mktemp("data") / "images"
    random = np.random.default_rng(0)
    for i in range(40):
        path = root / f"part {i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(path)
    (root / "list.txt").write_text(
        "\n".join(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    )
    return root


def flags(workdir, where, *overrides: str) -> list[str]:
    return tiny_flags(workdir, "data.source=images", f"data.dir={where}", *overrides)


@pytest.mark.slow
def test_training_features_and_report_need_no_classes(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main.run(flags(run, folder, *MAE)) == 0
    assert "data: train 36 images, no classes; val 4 images, no classes" in capsys.readouterr().out
    assert main.run(flags(tmp_path / "again", folder / "list.txt", *MAE, "data.workers=1")) == 0
    assert final_state(run) == final_state(tmp_path / "again")  # The same images and order.
    out = tmp_path / "features.npz"
    assert main.run(["features", f"--workdir={run}", f"--out={out}"]) == 0
    with np.load(out) as arrays:
        assert len(arrays["features"]) == 4
        assert arrays["labels"].tolist() == [-1] * 4
        assert arrays["classes"].tolist() == []
        assert all(name.endswith(".jpg") for name in arrays["names"])
    assert main.run(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "part 1/" in page


@pytest.mark.slow
def test_plan_counts_images_without_classes(folder, capsys):
    config, _, *overrides = flags("unused", folder, *MAE)
    assert main.run(["plan", config, *overrides]) == 0
    assert "36 examples, no classes (read from the data)" in capsys.readouterr().out


@pytest.mark.slow
def test_commands_that_need_classes_name_data_sets_that_have_them(folder, tmp_path):
    message = r"^data\.source=images has no classes, which .* needs; use a data\.source with cla"
    classification = flags(tmp_path / "a", folder)
    with pytest.raises(DataError, match=message):
        main.run(classification)
    config, _, *overrides = classification
    with pytest.raises(DataError, match=message):
        main.run(["plan", config, *overrides])
    run = tmp_path / "b"
    assert main.run(tiny_flags(run, "steps=2")) == 0
    data = ["--config.data.source=images", f"--config.data.dir={folder}"]
    for options in ([], ["--protocol=knn", "--config.data.val_split=val"]):
        with pytest.raises(DataError, match=message):
            main.run(["evaluate", f"--workdir={run}", *data, *options])
