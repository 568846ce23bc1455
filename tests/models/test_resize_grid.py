"""Resizing against scipy, which the official code uses, and against results of PyTorch."""

import numpy as np
import pytest
from scipy import ndimage

from tests.support.resize_cases import GOLDEN, NEW, TORCH, some_grid
from vit_jax.models.resize_grid import RESIZE_RULES, interpolation_matrix, resize_grid


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((14, 14), (24, 24)),
        ((24, 24), (14, 14)),
        ((14, 14), (10, 17)),
        ((10, 17), (14, 14)),
        ((14, 14), (7, 7)),
        ((4, 6), (6, 4)),
        ((3, 5), (1, 9)),
        ((1, 4), (3, 4)),
    ],
)
def test_resize_grid_equals_scipy_zoom_of_order_one(old, new):
    grid = np.random.default_rng(0).normal(size=(*old, 3))
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = ndimage.zoom(grid, zoom, order=1)
    assert expected.shape == (*new, 3)
    np.testing.assert_allclose(resize_grid(grid, new), expected, atol=1e-5)


def test_resize_grid_of_a_ramp_is_a_ramp_with_equal_end_points():
    ramp = np.arange(14.0)[:, None, None] * np.ones((14, 2, 1))
    resized = resize_grid(ramp, (24, 2))[:, 0, 0]
    np.testing.assert_allclose(resized, np.arange(24) * 13 / 23, atol=1e-12)
    assert resized[0] == 0
    assert resized[-1] == 13


def test_resize_grid_downsamples_without_averaging():
    ramp = np.arange(14.0).reshape(1, 14, 1)
    halved = resize_grid(ramp, (1, 7))[0, :, 0]
    np.testing.assert_allclose(halved, [0, 13 / 6, 26 / 6, 6.5, 52 / 6, 65 / 6, 13], atol=1e-12)
    spike = np.zeros((1, 9, 1))
    spike[0, 1] = 1  # Between the samples at 0, 2, 4, 6 and 8.
    assert not np.any(resize_grid(spike, (1, 5)))


def test_resize_grid_does_not_swap_height_and_width():
    rows = np.arange(3.0)[:, None, None] * np.ones((3, 2, 1))
    np.testing.assert_allclose(resize_grid(rows, (5, 3))[:, :, 0].T, [[0, 0.5, 1, 1.5, 2]] * 3)


def test_resize_grid_to_the_same_size_is_the_identity():
    grid = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_grid(grid, (3, 4)), grid)


def test_resize_grid_keeps_the_dtype():
    assert resize_grid(np.ones((2, 2, 1), np.float32), (3, 3)).dtype == np.float32


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (1, 5), (5, 1), (2, 3)])
def test_interpolation_matrix_rows_average_two_neighbors(old, new):
    matrix = interpolation_matrix(old, new)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert matrix.min() >= 0
    for row in matrix:
        assert np.ptp(np.flatnonzero(row)) <= 1


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_resize_grid_equals_pytorch(rule):
    expected = np.load(GOLDEN)
    for rows, columns in NEW:
        resized = resize_grid(some_grid(), (rows, columns), RESIZE_RULES[rule])
        np.testing.assert_allclose(resized, expected[f"{rule}-{rows}x{columns}"], atol=1e-5)


def test_resize_rules_differ_from_each_other():
    grids = [resize_grid(some_grid(), (3, 16), rule) for rule in RESIZE_RULES.values()]
    for i, grid in enumerate(grids):
        assert all(np.abs(grid - other).max() > 0.01 for other in grids[:i])


@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize(("old", "new"), [(1, 5), (5, 1), (2, 3), (37, 16), (16, 37), (4, 4)])
def test_resize_rules_keep_constants_and_the_order_of_an_axis(rule, old, new):
    matrix = RESIZE_RULES[rule](old, new)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    assert np.all(np.diff(matrix @ np.arange(old)) > -1e-12)
    if new > 1 and rule != "bicubic_offset":  # Mirrored input gives mirrored output.
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_all_resize_rules_have_a_golden_case():
    assert list(RESIZE_RULES) == list(TORCH)
