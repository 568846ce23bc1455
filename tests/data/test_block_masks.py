"""Block-wise masks: bounds, rectangles, and statistics of those that lightly draws."""

import json

import numpy as np
import pytest

from tests.support.mask_statistics import mask_statistics
from tests.support.runs import ROOT
from vit_jax.data.block_masks import BlockMasks, draw_blocks

# Written by test_block_masks_parity.py: rows, columns -> statistics of lightly's masks.
GOLDEN = json.loads((ROOT / "tests/golden/block_masks.json").read_text())
GRIDS = [(14, 14), (16, 8), (7, 7), (4, 6)]


def draws(masks: BlockMasks, count: int, num_views: int = 2) -> np.ndarray:
    """Masks of many images, count V N."""
    return np.stack([masks(np.random.default_rng(seed), num_views) for seed in range(count)])


def test_masks_depend_on_the_generator_alone():
    masks = BlockMasks((14, 14))
    one, same, other = (masks(np.random.default_rng(seed), 2) for seed in (1, 1, 2))
    assert one.shape == (2, 196)
    assert one.dtype == bool
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("grid", GRIDS)
def test_masks_have_at_most_the_upper_ratio_of_the_patches(grid):
    masks = BlockMasks(grid, 1.0, (0.1, 0.45))
    counts = draws(masks, 500).sum(-1)
    assert counts.max() <= masks.most_masked == int(grid[0] * grid[1] * 0.45)
    assert counts.max() >= 0.9 * masks.most_masked


@pytest.mark.parametrize(("share", "views"), [(0.0, 2), (0.5, 2), (0.5, 4), (1.0, 2)])
def test_a_whole_number_of_masked_views_is_the_same_for_every_image(share, views):
    is_masked = draws(BlockMasks((12, 12), share), 300, views).any(-1)
    assert (is_masked.sum(-1) == share * views).all()
    np.testing.assert_allclose(is_masked.mean(0), share, atol=0.1)  # Each view as often.


def test_other_shares_of_masked_views_are_right_on_average():
    is_masked = draws(BlockMasks((12, 12), 0.3), 2000).any(-1)
    assert set(is_masked.sum(-1)) == {0, 1}
    assert abs(is_masked.mean() - 0.3) < 0.02


def test_equal_ratios_mask_almost_this_fraction():
    counts = draws(BlockMasks((14, 14), 1.0, (0.3, 0.3)), 200).sum(-1)
    assert counts.max() <= int(196 * 0.3)
    assert counts.mean() > 196 * 0.28


def test_few_patches_are_one_rectangle_of_a_permitted_aspect():
    shapes = set()
    for seed in range(500):
        mask = draw_blocks((9, 9), 6, np.random.default_rng(seed)).reshape(9, 9)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if mask.sum() == len(rows) * len(columns) > 3:  # One rectangle, not a union.
            shapes.add((len(rows), len(columns)))
    # The first rectangle has an area of 4 to 6, and aspects of 0.3 to 3.3 before rounding.
    assert {(2, 3), (3, 2)} <= shapes <= {(2, 3), (3, 2), (2, 2), (1, 4), (4, 1), (1, 5), (5, 1)}


def test_every_patch_of_the_grid_is_masked_as_often_as_its_mirror_images():
    masks = draws(BlockMasks((6, 5), 1.0), 4000, 1).reshape(-1, 6, 5).mean(0)
    assert masks.min() > 0.1
    for mirrored in (masks[::-1], masks[:, ::-1]):
        np.testing.assert_allclose(masks, mirrored, atol=0.04)


@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (2, 2), (3, 1)])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_grids_end_and_keep_the_bound(grid, count):
    for seed in range(20):
        mask = draw_blocks(grid, count, np.random.default_rng(seed))
        assert mask.shape == (grid[0] * grid[1],)
        assert mask.sum() <= count


@pytest.mark.parametrize("grid", GOLDEN)
def test_statistics_are_those_of_lightly(grid):
    rows, columns = map(int, grid.split("x"))
    found = draws(BlockMasks((rows, columns)), 3000).reshape(-1, rows, columns)
    for name, expected in GOLDEN[grid].items():
        assert abs(mask_statistics(found)[name] - expected) < 0.01, name
