"""The verb `figures`: files, models, images, themes and errors."""

import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import some_params, tiny_encoder
from vit_jax import create_model, main, save_params
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.figures import attention_distance, style
from vit_jax.figures import attention_statistics as statistics_lib
from vit_jax.figures import draw as draw_lib
from vit_jax.models import trees
from vit_jax.weights import load

pytestmark = pytest.mark.stress  # Trains or runs models for seconds.

ALL = {"figure6", "figure7", "figure10", "figure11", "figure14", "heads", "patches"}


def write_weights(folder, name: str, size: int):
    """Writes random weights of a small model in the official npz format."""
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


def test_figures_of_weights_without_a_run_show_two_photos(tmp_path, capsys):
    where = write_weights(tmp_path, "vit_ti16", 64)
    line = draw(where, tmp_path / "out", capsys=capsys)
    assert line.endswith(f"images=2 out={tmp_path / 'out'}")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == ALL
    for path in (tmp_path / "out").iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 150
                assert np.asarray(image.convert("L")).std() > 5, "the image is not blank"
        else:
            text = "".join(xml.etree.ElementTree.parse(path).getroot().itertext())
            assert text.strip(), "SVG text is text, not paths"


def test_figures_of_a_hybrid_have_no_patches(tmp_path, capsys):
    line = draw(write_weights(tmp_path, "r_ti16", 64), tmp_path / "out", capsys=capsys)
    assert "figure7" in line
    assert "patches" not in line, "patches of a hybrid are features, not pixels"


@pytest.mark.parametrize("family", ["dinov3", "eva02", "deit_distilled"])
def test_figures_of_an_encoder_need_no_options(tmp_path, capsys, family):
    model = tiny_encoder(family, image_size=64, patch=16)
    where = tmp_path / "own.npz"
    save_params(where, model, some_params(model))
    line = draw(where, tmp_path / "out", capsys=capsys)
    names = ALL - ({"figure10"} if family == "dinov3" else set())
    assert line == f"done: figures={','.join(sorted(names))} images=2 out={tmp_path / 'out'}"
    if family == "dinov3":
        message = r"own\.npz has no position embeddings to show: its pos_embed is 'rope'\.$"
        with pytest.raises(ConfigError, match=message):
            draw(where, tmp_path / "more", "--only=figure10", capsys=capsys)


def test_figures_take_images_a_layer_and_a_theme(tmp_path, photo_folder, capsys):
    where = write_weights(tmp_path, "vit_ti16", 64)
    files = [f"--image={path}" for path in sorted(photo_folder.rglob("*.jpg"))[:5]]
    line = draw(where, tmp_path / "out", *files, "--block=0", "--theme=dark", capsys=capsys)
    assert "images=5" in line
    with Image.open(tmp_path / "out" / "figure11.png") as image:
        assert sum(image.convert("RGB").getpixel((2, 2))) < 100, "the background is dark"
    with pytest.raises(ConfigError, match="--block is 2; expected a layer from 0 to 1"):
        draw(where, tmp_path / "out", "--block=2", capsys=capsys)
    with pytest.raises(DataError, match=r"nothing\.jpg: No such file"):
        draw(where, tmp_path / "out", "--image=nothing.jpg", capsys=capsys)


def test_figures_reject_images_together_with_a_data_override(tmp_path):
    where = write_weights(tmp_path, "vit_ti16", 64)
    flags = ["--image=a.jpg", "--config.data.split=val", f"--out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match=r"data\.split and --image=a\.jpg exclude each other"):
        main.run(["figures", f"--checkpoint={where}", *flags])


def test_only_selects_figures(tmp_path, capsys):
    where = write_weights(tmp_path, "r_ti16", 64)
    line = draw(where, tmp_path / "out", "--only=figure10", capsys=capsys)
    assert line.startswith("done: figures=figure10 ")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"figure10"}
    with pytest.raises(ConfigError, match=r"--only=patches: .* has no such figure; choose from f"):
        draw(where, tmp_path / "out", "--only=patches", capsys=capsys)


def test_statistics_in_several_batches_equal_those_of_one_batch(tmp_path, monkeypatch):
    loaded = load.load(write_weights(tmp_path, "vit_ti16", 64))
    images = np.random.default_rng(0).uniform(-1, 1, (5, 64, 64, 3)).astype(np.float32)
    options = {"images": images, "layer": 0, "num_rollouts": 16}
    expected = statistics_lib.compute_statistics(loaded.model, loaded.params(), **options)
    monkeypatch.setattr(statistics_lib, "MAX_ATTENTION_BYTES", 2 * 4 * 3 * 17**2)  # Two images.
    params, read_layers = draw_lib._params_and_read_layers(loaded)
    batched = statistics_lib.compute_statistics(
        loaded.model, params, read_layers=read_layers, **options
    )
    for name in ("distances", "rollout_maps", "head_maps"):
        np.testing.assert_allclose(getattr(batched, name), getattr(expected, name), rtol=1e-5)
    assert expected.distances.shape == (2, 3)
    assert expected.rollout_maps.shape == (5, 4, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedding/kernel", "embedding/kernel contains values that are not finite"),
        (
            "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/kernel",
            "encoderblock_1/MultiHeadDotProductAttention_0/key/kernel contains values that are",
        ),
    ],
)
def test_figures_reject_weights_that_are_not_finite(tmp_path, name, message):
    where = write_weights(tmp_path, "vit_ti16", 64)
    arrays = dict(np.load(where))
    arrays[name].flat[0] = np.nan
    np.savez(where, **arrays)
    with pytest.raises(CheckpointError, match=message):
        main.run(["figures", f"--checkpoint={where}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_figures_write_nothing_if_a_layer_is_damaged(tmp_path):
    where = write_weights(tmp_path, "vit_ti16", 64)
    content = bytearray(where.read_bytes())
    offset = content.index(b"encoderblock_1/MlpBlock_0/Dense_0/kernel.npy") + 1000
    content[offset] ^= 1
    where.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"encoderblock_1/MlpBlock_0/Dense_0/kernel is dam"):
        main.run(["figures", f"--checkpoint={where}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_beside_adds_a_panel_to_figure_10(tmp_path, capsys):
    (tmp_path / "short").mkdir()
    (tmp_path / "long").mkdir()
    first = write_weights(tmp_path / "short", "vit_ti16", 64)
    second = write_weights(tmp_path / "long", "vit_ti16", 48)
    draw(first, tmp_path / "out", f"--beside={second}", capsys=capsys)
    svg = xml.etree.ElementTree.parse(tmp_path / "out" / "figure10.svg").getroot()
    text = "".join(svg.itertext())
    assert "short/vit_ti16.npz" in text
    assert "long/vit_ti16.npz" in text
    with pytest.raises(ConfigError, match="is given twice"):
        draw(first, tmp_path / "out", f"--beside={first}", capsys=capsys)


def test_save_figure_is_deterministic(tmp_path):
    distances = {"model": np.random.default_rng(0).uniform(0, 100, (3, 4))}
    written = []
    for folder in ("a", "b"):
        with style.theme("light"):
            paths = style.save_figure(
                attention_distance.plot_distances(distances), tmp_path / folder, "figure"
            )
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
