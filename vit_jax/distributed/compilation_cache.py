"""JAX's persistent compilation cache."""

import contextlib
import os

import jax


def keep_compiled_programs() -> None:
    """Stores compiled programs in the user's cache folder, so that each compiles only once.

    Nothing is stored if the folder cannot be written, as in a container with a read-only home.
    JAX's own settings take precedence: JAX_COMPILATION_CACHE_DIR chooses another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false disables the cache.
    """
    if jax.config.jax_compilation_cache_dir is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(caches, "vit_jax", "programs")
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
