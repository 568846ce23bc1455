"""The model card: names are text, and nothing of this machine is in it."""

import re

import pytest

from tests.support.tiny import tiny
from vit_jax.text import escape_markdown
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.model_card import model_card

NAMES = (
    "<script>alert(1)</script>",
    "a|b",
    "[click](http://x.y)",
    "`code`",
    "*bold*",
    "a\nb",
    "&lt;",
)


def card(file_format="npz", source="/home/me/secret/x.npz", **options):
    metadata = WeightsMetadata(
        classes=NAMES, crop="resize", resample="bicubic", assumed=("a=1 (b)",)
    )
    return model_card(
        tiny(image_size=8),
        metadata,
        file_format=file_format,
        name="y",
        source=source,
        num_params=7,
        **options,
    )


def test_class_names_are_no_mark_up():
    text = card()
    line = next(line for line in text.splitlines() if line.startswith("Classes: "))
    assert "&lt;script&gt;" in line
    for mark in ("<", "[click](", " `code`", " *bold*", " a|b"):
        assert mark not in line
    for escaped in ("a\\|b", "\\[click\\](http://x.y)", "\\`code\\`", "\\*bold\\*", "&amp;lt;"):
        assert escaped in line


@pytest.mark.parametrize("char", list("\\`*_[]|!#~$"))
def test_escape_markdown_puts_a_backslash_before_each_mark(char):
    assert escape_markdown(f"a{char}b") == f"a\\{char}b"


def test_escape_markdown_keeps_names_and_escapes_control_characters():
    assert escape_markdown("Kätzchen 犬, (2)") == "Kätzchen 犬, (2)"
    assert "\n" not in escape_markdown("a\nb")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/secret/x.npz", "x.npz"),
        ("file:///home/me/secret/x.npz", "x.npz"),
        ("FILE:///home/me/secret/x.npz", "x.npz"),
        ("runs/photos", "runs/photos"),
        ("imagenet21k/ViT-B_16", "imagenet21k/ViT-B\\_16"),
        ("https://host/x.npz?token=secret", "https://host/x.npz"),
        ("hf://timm/vit", "hf://timm/vit"),
    ],
)
def test_card_has_no_absolute_path_and_no_secret(source, shown):
    for file_format in ("npz", "safetensors", "huggingface"):
        text = card(file_format, source)
        assert f"| Converted from | {shown} |" in text
        assert "secret" not in text
        assert not re.search(r"[\"' (]/\w", text)


def test_card_lists_losses_assumptions_and_code():
    text = card("huggingface", losses=["transformers: gelu|x"])
    assert "## Differences in other code\n\n- transformers: gelu\\|x\n" in text
    assert "| Assumed | a=1 (b) |" in text
    assert "from transformers import AutoImageProcessor" in text
    assert "timm.models.VisionTransformer(" in card("safetensors")
    assert "Differences" not in card()


def test_title_names_the_shape_that_differs_from_the_name():
    text = card()
    assert "# ViT-2x32/4\n" in text
    assert "| Model | ViT-2x32/4 (changed from vit_ti16) |" in text
