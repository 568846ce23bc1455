"""Rotary positions: angles by their formulas, and products that depend on offsets alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import forward, some_images, some_params, tiny
from vit_jax.errors import ConfigError
from vit_jax.models import rope

GRID, D = (3, 2), 8


def test_dinov3_angles_are_coordinates_in_minus_1_to_1_over_periods_of_1_and_10():
    angles = rope.dinov3_angles(GRID, D)
    rows, columns = np.array([-2 / 3, 0, 2 / 3]), np.array([-1 / 2, 1 / 2])
    for n, (row, column) in enumerate((r, c) for r in rows for c in columns):
        expected = 2 * np.pi * np.array([row, row / 10, column, column / 10])
        np.testing.assert_allclose(angles[n], expected, atol=1e-12)


def test_eva02_angles_scale_any_grid_to_16_patches():
    angles = rope.eva02_angles(GRID, D)
    np.testing.assert_allclose(angles[3], [16 / 3, 16 / 3 / 100, 8, 8 / 100])
    np.testing.assert_allclose(rope.eva02_angles((16, 16), 4)[17], [1, 1])


@pytest.mark.parametrize(("name", "pairs"), [("dinov3", [0, 4]), ("eva02", [0, 1])])
def test_a_pair_of_channels_is_rotated_by_the_first_angle(name, pairs):
    rotary = rope.make_rotary(name, GRID, D, num_prefix_tokens=1)
    x = np.zeros((1, 7, 1, D), np.float32)
    x[..., pairs[0]] = 1
    y = np.array(rope.rotate(jnp.array(x), jnp.array(rotary), name))
    angle = rope.find_rope(name).angles(GRID, D)[:, 0]
    np.testing.assert_array_equal(y[0, 0], x[0, 0])  # The class token is not rotated.
    np.testing.assert_allclose(y[0, 1:, 0, pairs[0]], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(y[0, 1:, 0, pairs[1]], np.sin(angle), atol=1e-6)


@pytest.mark.parametrize("name", ["dinov3", "eva02"])
def test_products_of_rotated_queries_and_keys_depend_on_offsets_alone(name):
    rotary = jnp.array(rope.make_rotary(name, (4, 4), D, 0))
    q, k = np.random.default_rng(0).normal(size=(2, D)).astype(np.float32)
    rotated = [rope.rotate(jnp.tile(x, (1, 16, 1, 1)), rotary, name)[0, :, 0] for x in (q, k)]
    A = np.array(rotated[0] @ rotated[1].T).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(A[0, 1, 2, 3], A[1, 0, 3, 2], atol=1e-5)
    assert abs(A[0, 1, 2, 3] - A[0, 1, 2, 2]) > 1e-3


@pytest.mark.parametrize("pos_embed", ["rope", "learned_rope"])
@pytest.mark.parametrize("options", [{"scan": True}, {"kernels": "plain"}, {"remat": "full"}])
def test_a_scan_and_other_kernels_give_the_outputs_of_the_loop(pos_embed, options):
    model = tiny(pos_embed=pos_embed, rope="eva02", registers=2)
    params, images = some_params(model), some_images(2, 8, 12, 3)
    other = tiny(pos_embed=pos_embed, rope="eva02", registers=2, **options)
    np.testing.assert_allclose(
        forward(other, params, images), forward(model, params, images), rtol=1e-4, atol=1e-5
    )


def test_heads_that_have_no_pairs_for_both_axes_are_refused():
    with pytest.raises(ConfigError, match=r"multiple of 4 channels.* gives 6"):
        tiny(pos_embed="rope", hidden_size=24, num_heads=4)
