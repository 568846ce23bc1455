"""Fixtures of download tests."""

import threading

import pytest

from tests.support.download_site import Site
from vit_jax.weights import download


@pytest.fixture
def site():
    """A running server with configurable faults."""
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield site
        site.is_over.set()
        site.shutdown()


@pytest.fixture
def weights_cache(tmp_path, monkeypatch):
    """The weights folder of a temporary cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    return tmp_path / "cache" / "vit_jax" / "weights"
