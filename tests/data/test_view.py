"""Views of images, and by how much a JPEG may be shrunk for them."""

import pytest

from vit_jax.data.view import View


@pytest.mark.parametrize(
    ("box", "factor"),
    [
        ((31, 500), 1),
        ((32, 500), 2),
        ((63, 64), 2),
        ((64, 64), 4),
        ((128, 127), 4),
        ((200, 128), 8),
    ],
)
def test_a_jpeg_shrinks_no_further_than_its_crop_allows(box, factor):
    assert View((0, 0, *box), (16, 16), (0, 0, 16, 16)).shrink() == factor
