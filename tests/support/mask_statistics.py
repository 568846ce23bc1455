"""Statistics of masks of patches, by which two ways to draw them are compared."""

import numpy as np


def mask_statistics(masks: np.ndarray) -> dict[str, float]:
    """Returns statistics of masks N H W bool; those of masked images are means over these.

    share: fraction of the images with masked patches. masked, std: mean and deviation of the
    fraction of masked patches. neighbours: fraction of the masked patches whose right and lower
    neighbours are masked. edge: fraction of the masked patches on the edge of the grid.
    """
    masked = masks[masks.any((1, 2))]
    fraction = masked.mean((1, 2))
    inner = masked[:, 1:-1, 1:-1].sum()
    corner = masked[:, :-1, :-1] & masked[:, 1:, :-1] & masked[:, :-1, 1:]
    return {
        "share": len(masked) / len(masks),
        "masked": float(fraction.mean()),
        "std": float(fraction.std()),
        "neighbours": float(corner.sum() / masked[:, :-1, :-1].sum()),
        "edge": float(1 - inner / masked.sum()),
    }
