"""The images that `predict` finds in folders."""

import tarfile

import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.errors import DataError
from vit_jax.evaluation import predict


@pytest.fixture
def predictor(monkeypatch):
    """Replaces the model by one that names the mean colour of an image."""

    def classify(pixels):
        return [[predict.Prediction(f"{255 * (p.mean() + 1) / 2:.0f}", 1.0)] for p in pixels]

    classify.recipe = EvalRecipe.from_data(Data(), (4, 4))
    monkeypatch.setattr(predict, "Predictor", lambda *_, **__: classify)


def make_image(path, grey: int, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path, "PNG")


def predicted(tmp_path, *images, **options) -> dict:
    found = predict.predict_files("weights", [str(image) for image in images], **options)
    return {str(path.relative_to(tmp_path)): labels and labels[0].label for path, labels in found}


def test_predict_files_finds_images_of_folders_as_training_does(predictor, tmp_path, capsys):
    for grey, name in enumerate(("a.png", "b/c.JFIF", ".ipynb_checkpoints/a.png", "._d.png")):
        make_image(tmp_path / name, 50 * (grey + 1))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "e.bmp").write_bytes(b"BM")
    assert predicted(tmp_path, tmp_path) == {"a.png": "50", "b/c.JFIF": "100"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}: skipped ")
    for text in ("1 .bmp (not JPEG, PNG or WebP, such as e.bmp)", "(hidden, such as ._d.png)"):
        assert text in line


def test_predict_files_names_what_a_folder_without_images_has(predictor, tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no images \(.*\); found 1 \.heic \(not JPEG, PNG or"):
        predicted(tmp_path, tmp_path)


def test_predict_files_reports_unreadable_files_and_large_images(predictor, tmp_path, capsys):
    make_image(tmp_path / "large.png", 100, size=(200, 200))
    (tmp_path / "empty.png").write_bytes(b"")
    expected = {"empty.png": None, "large.png": "100"}
    assert predicted(tmp_path, tmp_path) == expected
    assert "empty.png: unreadable image (an empty file;" in capsys.readouterr().err
    found = predicted(tmp_path, tmp_path, max_megapixels=0.01)
    assert found == {"empty.png": None, "large.png": None}
    assert "0.04 megapixels are more than max_megapixels=0.01" in capsys.readouterr().err


def test_predict_files_reads_the_members_of_a_tar_file(predictor, tmp_path, capsys):
    for name, grey in (("b/1.png", 50), ("a.png", 100)):
        make_image(tmp_path / "files" / name, grey)
    (tmp_path / "files" / "c.txt").write_bytes(b"")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "files", ".")
    expected = {"photos.tar/a.png": "100", "photos.tar/b/1.png": "50"}
    assert predicted(tmp_path, tmp_path / "photos.tar") == expected
    assert "photos.tar: skipped 1 .txt (no image suffix" in capsys.readouterr().err
