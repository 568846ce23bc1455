"""Statistics of features that show a collapse: their effective rank and their deviation.

Letters of shapes: N examples   D features
"""

import numpy as np

MAX_ROWS = 25_600  # Examples of the estimates in arXiv:2210.02885.
EPSILON = 1e-7  # Added to the share of each singular value, as there.


def rankme(features) -> float:
    """Returns the effective rank of features N D, RankMe (arXiv:2210.02885, equation 1).

    It is exp(-sum p ln p) with p = s / sum(s) + 1e-7 of the singular values s: from 1, if all
    features are multiples of one vector, to min(N, D), if all singular values are equal. Of more
    than 25,600 rows, evenly spaced ones are used.
    """
    s = np.linalg.svd(_rows(features), compute_uv=False)
    p = s / max(s.sum(), np.finfo(s.dtype).tiny) + EPSILON
    return float(np.exp(-np.sum(p * np.log(p))))


def deviation(features) -> float:
    """Returns the mean deviation of the features N D, scaled to length 1, times sqrt(D).

    It is 0 if all rows have the same direction, and near 1 if the directions are isotropic. Of
    more than 25,600 rows, evenly spaced ones are used.
    """
    rows = _rows(features)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length > 0, length, 1)
    return float(np.mean(unit.std(axis=0)) * np.sqrt(rows.shape[1]))


def _rows(features) -> np.ndarray:
    """Returns the rows to use in float64; examples are often in the order of their classes."""
    chosen = np.linspace(0, len(features) - 1, min(len(features), MAX_ROWS)).astype(int)
    return np.asarray(features[chosen], np.float64)
