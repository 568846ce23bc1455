"""Resize rules against PyTorch's interpolation.

Deselected by default: `pytest -m parity`. `UPDATE_GOLDEN=1 pytest -m parity -k golden` writes
the file of the default tests again.
"""

import os

import numpy as np
import pytest

from tests.support.resize_cases import GOLDEN, NEW, OLD, TORCH, some_grid, torch_resize
from vit_jax.models.resize_grid import RESIZE_RULES, resize_grid

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_resize_grid_equals_pytorch_at_sizes_of_models(torch, rule):
    # Up and down, one axis alone, odd sizes: grids of 14 and 16 pixels at 224, 384 and 518.
    for old in ((37, 37), (16, 16), (14, 14), (14, 24)):
        for new in ((16, 16), (37, 37), (27, 27), (14, 20), (37, 16), (64, 9)):
            if old == new:  # The code of DINOv2 does not call the function then.
                continue
            expected = torch_resize(torch, some_grid(old, 3), new, **TORCH[rule])
            actual = resize_grid(some_grid(old, 3), new, RESIZE_RULES[rule])
            # PyTorch computes coordinates in float32.
            np.testing.assert_allclose(actual, expected, atol=3e-5 * np.abs(expected).max())


def test_golden_file_has_the_results_of_pytorch(torch):
    results = {
        f"{rule}-{rows}x{columns}": torch_resize(torch, some_grid(OLD), (rows, columns), **options)
        for rule, options in TORCH.items()
        for rows, columns in NEW
    }
    if os.environ.get("UPDATE_GOLDEN"):
        np.savez_compressed(GOLDEN, **results)
    golden = np.load(GOLDEN)
    assert set(golden.files) == set(results)
    for name, result in results.items():
        np.testing.assert_allclose(golden[name], result, atol=1e-6)
