"""Settings of this process for JAX and the C library; the user's own settings take precedence."""

import contextlib
import ctypes
import os
import pathlib
import time

import jax

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def prepare_process() -> None:
    """Keeps compiled programs and freed memory; call it before the first computation."""
    _keep_compiled_programs()
    _run_programs_in_turn()
    _keep_freed_memory()


def start_time() -> float:
    """Returns the Unix time at which this process started; without /proc, as on macOS, now."""
    try:
        status = pathlib.Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return time.time()
    ticks = int(status.rpartition(")")[2].split()[19])  # Since the boot; field 22 of proc(5).
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - max(0.0, age)


def _keep_compiled_programs() -> None:
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


def _run_programs_in_turn() -> None:
    """Makes a CPU finish a program, and free its memory, before the next one starts.

    Otherwise the next training step allocates its memory before the last step has freed its own,
    and the process needs both. JAX_CPU_ENABLE_ASYNC_DISPATCH takes precedence.
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    On a CPU, XLA allocates the memory of every step with malloc. By default, glibc returns blocks
    of this size to the system when they are freed, and the system clears every page again in the
    next step. Without glibc, or if an environment variable sets its malloc, nothing changes.
    """
    names = [name for name in os.environ if name.startswith("MALLOC_")]
    is_set_by_user = names or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version") and not is_set_by_user:
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)  # Never.
