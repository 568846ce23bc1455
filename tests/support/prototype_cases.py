"""Inputs of losses on prototypes and of projection heads, with the file of PyTorch's results."""

import itertools

import numpy as np

from tests.support.runs import ROOT

GOLDEN = ROOT / "tests" / "golden" / "self_distillation.npz"
TEMPERATURES = {"student": 0.1, "teacher": 0.04}
B, K, N, D = 4, 12, 9, 7  # N patches of a crop, of which 3, 0, 4 and 1 are masked below.
COUNTS = ((3, 0), (0, 4), (1, 2), (4, 0))  # Masked patches of both crops of each image.
PLACES = 4
HEAD = {"D": 8, "hidden": 10, "bottleneck": 6, "prototypes": 12}


def case(num_local: int) -> dict[str, np.ndarray]:
    """Cosines, as a projection head returns them, and a centre."""
    random = np.random.default_rng(0)

    def cosines(*shape):
        return random.uniform(-1, 1, shape).astype(np.float32)

    masked = np.zeros((B, 2, N), bool)
    weights = np.zeros((B, 2, PLACES), np.float32)
    for image, counts in enumerate(COUNTS):
        for crop, count in enumerate(counts):
            masked[image, crop, random.permutation(N)[:count]] = True
            weights[image, crop, :count] = 1 / max(count, 1)
    return {
        "teacher": cosines(B, 2, K),
        "centre": cosines(K) / 5,
        "patch_teacher": cosines(B, 2, PLACES, K),
        "patch_student": cosines(B, 2, PLACES, K),
        "patch_weights": weights,
        "is_masked": masked,
        "features": random.normal(size=(6, D)).astype(np.float32),
        "student": cosines(B, 2 + num_local, K),
    }


def head_params(has_scale: bool) -> dict[str, np.ndarray]:
    """Parameters of a projection head of three layers, in the layouts of this package."""
    random = np.random.default_rng(1)
    widths = (HEAD["D"], HEAD["hidden"], HEAD["hidden"], HEAD["bottleneck"])
    params = {}
    for i, shape in enumerate(itertools.pairwise(widths)):
        params[f"layer_{i}/kernel"] = random.normal(0, 0.5, shape)
        params[f"layer_{i}/bias"] = random.normal(0, 0.3, shape[1])
    params["last_layer/kernel"] = random.normal(size=(HEAD["bottleneck"], HEAD["prototypes"]))
    if has_scale:
        params["last_layer/scale"] = random.uniform(0.5, 2, HEAD["prototypes"])
    return {name: array.astype(np.float32) for name, array in params.items()}


def head_tokens() -> np.ndarray:
    """Class tokens of five images."""
    return np.random.default_rng(2).normal(size=(5, HEAD["D"])).astype(np.float32)


LOCAL = {"num_layers": 2, "hidden_size": 32, "mlp_size": 64, "num_heads": 2, "patch": 4}
GLOBAL_SIZE, LOCAL_SIZE = (28, 28), (12, 12)  # Grids of 7x7 and 3x3 patches.
LOCAL_MODELS = {  # Name of a model with its class in timm, and options that differ from DINO's.
    "dino": ("dino_s16", {}),
    "dinov2": ("dinov2_reg_s14", {"layer_scale": 1.0}),
}


def local_images() -> np.ndarray:
    """Two local crops in [-1, 1]."""
    return np.random.default_rng(3).uniform(-1, 1, (2, *LOCAL_SIZE, 3)).astype(np.float32)
