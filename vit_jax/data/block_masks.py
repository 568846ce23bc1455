"""Block-wise masks of patches (BEiT, arXiv:2106.08254; iBOT, arXiv:2111.07832; DINOv2)."""

import dataclasses
import math

import numpy as np

from vit_jax.data.view import Size

LEAST_AREA = 4  # Patches of a block, before its sides are rounded (DINOv2's `min_num_patches`).
LEAST_ASPECT = 0.3  # Height over width of a block; the largest is 1 / LEAST_ASPECT.
ATTEMPTS = 10  # Blocks that are tried before the mask is left as it is.


@dataclasses.dataclass(frozen=True)
class BlockMasks:
    """Draws the masked patches of the views of an image: (generator, V) -> V N bool.

    As in iBOT and DINOv2, a part of the views is masked, and the ratio of a masked view is uniform.
    This part is the same for every image: one of V = 2 views with `masked_crops` of 0.5. A fraction
    of a view is masked with this probability.

    Attributes:
      grid: rows and columns of patches, N in all.
      masked_crops: fraction of the views that have masked patches.
      ratios: bounds of the fraction of masked patches in such a view.
    """

    grid: Size
    masked_crops: float = 0.5
    ratios: tuple[float, float] = (0.1, 0.5)

    @property
    def num_patches(self) -> int:
        """Number of patches N of a view."""
        return self.grid[0] * self.grid[1]

    @property
    def most_masked(self) -> int:
        """Upper bound of the number of masked patches of a view."""
        return int(self.num_patches * self.ratios[1])

    def __call__(self, random: np.random.Generator, num_views: int) -> np.ndarray:
        masks = np.zeros((num_views, self.num_patches), bool)
        count = int(num_views * self.masked_crops + random.random())
        for view in random.permutation(num_views)[:count]:
            num_masked = int(self.num_patches * random.uniform(*self.ratios))
            masks[view] = draw_blocks(self.grid, num_masked, random)
        return masks


def draw_blocks(grid: Size, num_masked: int, random: np.random.Generator) -> np.ndarray:
    """Returns N bool, the union of random rectangles of patches: at most `num_masked` are True.

    As in DINOv2, the area of a rectangle is uniform from LEAST_AREA to the number of patches that
    are still missing, its aspect is log-uniform, and one that would mask too many patches, or no
    new one, is drawn again. The mask is smaller than `num_masked` if no rectangle fits.
    """
    rows, columns = grid
    mask = count = 0  # Patch i is bit i: counting the bits of a rectangle takes no array.
    while rest := num_masked - count:
        for area, aspect, down, across in random.random((ATTEMPTS, 4)).tolist():
            area = LEAST_AREA + area * (rest - LEAST_AREA)
            aspect = LEAST_ASPECT ** (1 - 2 * aspect)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = int(down * (rows - height + 1)), int(across * (columns - width + 1))
            block = _rectangle(height, width, columns) << (top * columns + left)
            num_new = (block & ~mask).bit_count()
            if 0 < num_new <= rest:
                break
        else:
            break
        mask, count = mask | block, count + num_new
    packed = np.frombuffer(mask.to_bytes(-(-rows * columns // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=rows * columns, bitorder="little").astype(bool)


def _rectangle(height: int, width: int, columns: int) -> int:
    """Returns the bits of a rectangle in the first corner of a grid with so many columns."""
    return sum(((1 << width) - 1) << (row * columns) for row in range(height))
