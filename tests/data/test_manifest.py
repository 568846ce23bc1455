"""Tests of `manifest`: its description, which may be damaged."""

import pytest

from vit_jax.data import manifest


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 200_000])
def test_read_info_is_none_for_a_damaged_file(text, tmp_path):
    assert manifest.read_info(tmp_path) is None
    (tmp_path / manifest.INFO).write_text(text, encoding="utf-8")
    assert manifest.read_info(tmp_path) is None
    (tmp_path / manifest.INFO).write_text('{"images": 3}')
    assert manifest.read_info(tmp_path) == {"images": 3}
