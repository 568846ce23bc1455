"""Tests of the folder of compiled programs."""

import jax
import pytest

from vit_jax.distributed.compilation_cache import keep_compiled_programs


@pytest.mark.parametrize("is_writable", [True, False])
def test_programs_are_kept_if_the_folder_can_be_written(tmp_path, monkeypatch, is_writable):
    home = tmp_path / "home"
    home.mkdir() if is_writable else home.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_compiled_programs()
        folder = str(home / "vit_jax" / "programs") if is_writable else None
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
