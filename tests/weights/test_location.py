"""Options of a weights file after WHERE and a colon."""

import pytest

from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.weights import download, load, metadata
from vit_jax.weights.location import resolve, split_options


@pytest.mark.parametrize(
    ("where", "name", "options"),
    [
        ("x.npz", "x.npz", {}),
        ("x.npz:num_heads=6", "x.npz", {"num_heads": "6"}),
        ("a:b/x.npz:gelu=erf,norm_eps=1e-5", "a:b/x.npz", {"gelu": "erf", "norm_eps": "1e-5"}),
        ("https://h:80/x.npz?a=1", "https://h:80/x.npz?a=1", {}),
        ("https://h:80/x.npz:pool=gap", "https://h:80/x.npz", {"pool": "gap"}),
        ("x.npz:classes=names.txt", "x.npz", {"classes": "names.txt"}),
        ("imagenet21k/ViT-B_16", "imagenet21k/ViT-B_16", {}),
    ],
)
def test_split_options_takes_what_follows_the_last_colon(where, name, options):
    assert split_options(where) == (name, options)


def test_split_options_leaves_the_name_of_an_existing_file(tmp_path):
    path = tmp_path / "x.npz:num_heads=6"
    path.touch()
    assert split_options(path) == (str(path), {})


def test_from_text_parses_numbers_and_sizes():
    options = {"num_heads": "6", "image_size": "224", "norm_eps": "1e-5", "crop_side": "40x48"}
    found = metadata.from_text(options | {"gelu": "erf"}, "x")
    assert (found.num_heads, found.image_size, found.norm_eps) == (6, (224, 224), 1e-5)
    assert (found.crop_side, found.gelu) == ((40, 48), "erf")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_head": "6"}, "x:num_head=6: unknown option; .* Did you mean num_heads"),
        ({"assumed": "x"}, "unknown option"),
        ({"num_heads": "many"}, "num_heads is 'many'"),
        ({"pixel_stats": "dino"}, "pixel_stats is 'dino'"),
        ({"image_size": "0"}, r"image_size is \[0, 0\]"),
        ({"classes": "nowhere.txt"}, "x:classes=nowhere.txt cannot be read"),
    ],
)
def test_from_text_rejects_unknown_options_and_values(options, text):
    with pytest.raises(ConfigError, match=text):
        metadata.from_text(options, "x")


def test_resolve_rejects_options_of_a_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "3" / "manifest").mkdir(parents=True)
    with pytest.raises(ConfigError, match="num_heads cannot be set"):
        resolve(f"{tmp_path / 'checkpoints' / '3'}:num_heads=6")


def test_name_of_an_encoder_is_the_location_of_its_weights(monkeypatch, tmp_path):
    fetched = []
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(download, "fetch", lambda url: fetched.append(url) or tmp_path)
    assert resolve("dinov2_reg_s14:pool=token").path == tmp_path
    assert load.model_section("dinov2_reg_s14").registers == 4
    assert fetched == ["hf://facebook/dinov2-with-registers-small"]
    with pytest.raises(CheckpointError, match="no such file, folder or published name"):
        resolve("dinov2_ti14")  # A size that was never published.
