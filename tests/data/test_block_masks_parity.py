"""Block-wise masks beside those of lightly (PyTorch).

Run as a script, it writes tests/golden/block_masks.json.
"""

import json
import random

import numpy as np
import pytest

from tests.support.mask_statistics import mask_statistics
from tests.support.runs import ROOT
from vit_jax.data.block_masks import BlockMasks

pytestmark = pytest.mark.parity
GRIDS = [(14, 14), (7, 7), (16, 8)]


def their_masks(grid, count: int, seed: int) -> np.ndarray:
    """Masks of lightly, 2 count H W: half of the images have 10 to 50 % of their patches masked."""
    utils = pytest.importorskip("lightly.models.utils")
    random.seed(seed)
    return utils.random_block_mask((2 * count, *grid)).numpy()


@pytest.mark.parametrize("grid", GRIDS)
def test_statistics_are_those_of_lightly(grid):
    theirs = mask_statistics(their_masks(grid, 2000, seed=1))
    masks = BlockMasks(grid)
    drawn = np.stack([masks(np.random.default_rng(seed), 2) for seed in range(2000)])
    ours = mask_statistics(drawn.reshape(-1, *grid))
    for name, value in theirs.items():
        assert abs(ours[name] - value) < 0.015, name


if __name__ == "__main__":
    golden = {f"{h}x{w}": mask_statistics(their_masks((h, w), 20_000, seed=0)) for h, w in GRIDS}
    rounded = {grid: {k: round(v, 4) for k, v in row.items()} for grid, row in golden.items()}
    (ROOT / "tests/golden/block_masks.json").write_text(json.dumps(rounded, indent=1) + "\n")
