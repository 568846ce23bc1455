"""The verb `figures`: what it writes, of which models, in which colours."""

import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from vit_jax import create_model, main, trees
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.figures import attention_distance, style
from vit_jax.figures import draw as draw_lib
from vit_jax.weights import load

ALL = {"figure6", "figure7", "figure10", "figure11", "figure14", "heads", "patches"}


def weights(folder, name: str, size: int):
    """Random weights of a small model, in the official form, with no data behind them."""
    import jax

    model = create_model(
        name,
        num_classes=3,
        image_size=size,
        num_layers=2,
        hidden_size=24,
        mlp_size=48,
        num_heads=3,
    )
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, size, size, 3)))["params"]
    path = folder / f"{name}.npz"
    np.savez(path, **trees.flatten(jax.tree.map(np.array, params)))
    return path


def draw(where, out, *flags: str, capsys) -> str:
    assert main.run(["figures", f"--checkpoint={where}", f"--out={out}", *flags]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_weights_alone_are_drawn_over_two_photos(tmp_path, capsys):
    where = weights(tmp_path, "vit_ti16", 64)
    line = draw(where, tmp_path / "out", capsys=capsys)
    assert line.endswith(f"images=2 out={tmp_path / 'out'}")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == ALL
    for path in (tmp_path / "out").iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 150
                assert np.asarray(image.convert("L")).std() > 5, "something is drawn"
        else:
            text = "".join(xml.etree.ElementTree.parse(path).getroot().itertext())
            assert text.strip(), "words are words in the vector form"


def test_a_hybrid_is_drawn_with_the_filters_of_its_root(tmp_path, capsys):
    line = draw(weights(tmp_path, "r_ti16", 64), tmp_path / "out", capsys=capsys)
    assert "figure7" in line
    assert "patches" not in line, "its patches are of features, not of colours"


def test_images_of_ones_own_and_a_layer_can_be_chosen(tmp_path, photo_folder, capsys):
    where = weights(tmp_path, "vit_ti16", 64)
    files = [f"--image={path}" for path in sorted(photo_folder.rglob("*.jpg"))[:5]]
    line = draw(where, tmp_path / "out", *files, "--block=0", "--theme=dark", capsys=capsys)
    assert "images=5" in line
    with Image.open(tmp_path / "out" / "figure11.png") as image:
        assert sum(image.convert("RGB").getpixel((2, 2))) < 100, "the paper is dark"
    with pytest.raises(ConfigError, match="--block is 2; the layers are 0 to 1"):
        draw(where, tmp_path / "out", "--block=2", capsys=capsys)
    with pytest.raises(DataError, match=r"nothing\.jpg: No such file"):
        draw(where, tmp_path / "out", "--image=nothing.jpg", capsys=capsys)


def test_images_and_a_runs_data_are_not_both_taken(tmp_path):
    where = weights(tmp_path, "vit_ti16", 64)
    flags = ["--image=a.jpg", "--config.data.split=val", f"--out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match=r"data\.split amends .* --image=a\.jpg"):
        main.run(["figures", f"--checkpoint={where}", *flags])


def test_one_figure_can_be_drawn_alone(tmp_path, capsys):
    where = weights(tmp_path, "r_ti16", 64)
    line = draw(where, tmp_path / "out", "--only=figure10", capsys=capsys)
    assert line.startswith("done: figures=figure10 ")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"figure10"}
    with pytest.raises(ConfigError, match=r"--only=patches: no such figure .* it has figure10, "):
        draw(where, tmp_path / "out", "--only=patches", capsys=capsys)


def test_images_in_several_batches_are_seen_as_all_at_once(tmp_path, monkeypatch):
    loaded = load.load(weights(tmp_path, "vit_ti16", 64))
    images = np.random.default_rng(0).uniform(-1, 1, (5, 64, 64, 3)).astype(np.float32)
    held = draw_lib.Examined("weights", loaded.model, loaded.params(), None, images)
    whole = draw_lib._look(held, block=0)
    monkeypatch.setattr(draw_lib, "HELD", 2 * 4 * 3 * 17**2)  # Two images' weights.
    read = draw_lib.Examined("weights", loaded.model, *draw_lib._in_parts(loaded), images)
    parts = draw_lib._look(read, block=0)
    for name in ("distances", "masks", "heads"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5)
    assert whole.distances.shape == (2, 3)
    assert whole.masks.shape == (5, 4, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embedding/kernel", "embedding/kernel holds values that are no numbers"),
        (
            "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/kernel",
            "attention of layer 1 is no number",
        ),
    ],
)
def test_weights_that_are_no_numbers_are_told_of(tmp_path, name, words):
    where = weights(tmp_path, "vit_ti16", 64)
    arrays = dict(np.load(where))
    arrays[name].flat[0] = np.nan
    np.savez(where, **arrays)
    with pytest.raises(CheckpointError, match=words):
        main.run(["figures", f"--checkpoint={where}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_damaged_layer_is_told_of_and_nothing_is_written(tmp_path):
    where = weights(tmp_path, "vit_ti16", 64)
    content = bytearray(where.read_bytes())
    place = content.index(b"encoderblock_1/MlpBlock_0/Dense_0/kernel.npy") + 1000
    content[place] ^= 1
    where.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"encoderblock_1/MlpBlock_0/Dense_0/kernel is dam"):
        main.run(["figures", f"--checkpoint={where}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_figure_10_has_a_panel_for_each_of_several_models(tmp_path, capsys):
    (tmp_path / "short").mkdir()
    (tmp_path / "long").mkdir()
    first = weights(tmp_path / "short", "vit_ti16", 64)
    second = weights(tmp_path / "long", "vit_ti16", 48)
    draw(first, tmp_path / "out", f"--beside={second}", capsys=capsys)
    svg = xml.etree.ElementTree.parse(tmp_path / "out" / "figure10.svg").getroot()
    words = "".join(svg.itertext())
    assert "short/vit_ti16.npz" in words
    assert "long/vit_ti16.npz" in words
    with pytest.raises(ConfigError, match="is there twice"):
        draw(first, tmp_path / "out", f"--beside={first}", capsys=capsys)


def test_the_same_figure_is_the_same_file(tmp_path):
    found = {"model": np.random.default_rng(0).uniform(0, 100, (3, 4))}
    written = []
    for folder in ("a", "b"):
        with style.theme("light"):
            paths = style.save(attention_distance.plot(found), tmp_path / folder, "figure")
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
