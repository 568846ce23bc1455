"""Figure of masked images and their predictions."""

import numpy as np

from vit_jax.figures import reconstruction, style

GRID = (2, 3)


def some_reconstruction(count=2):
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (count, 8, 12, 3)).astype(np.float32)
    predictions = random.normal(0, 1, images.shape).astype(np.float32)
    is_predicted = np.arange(6 * count).reshape(count, 6) % 4 > 0
    return images, is_predicted, predictions


def test_columns_have_each_pixel_from_the_image_or_from_the_predictions():
    images, is_predicted, predictions = some_reconstruction()
    found = reconstruction.combine(images, is_predicted, predictions, GRID)
    for b, y, x in np.ndindex(images.shape[:3]):
        pixel = np.clip((images[b, y, x] + 1) / 2, 0, 1)
        predicted = np.clip((predictions[b, y, x] + 1) / 2, 0, 1)
        is_hidden = is_predicted[b, 3 * (y // 4) + x // 4]
        np.testing.assert_array_equal(found.original[b, y, x], pixel)
        np.testing.assert_array_equal(found.predicted[b, y, x], predicted)
        np.testing.assert_array_equal(found.masked[b, y, x], 0.5 if is_hidden else pixel)
        np.testing.assert_array_equal(found.combined[b, y, x], predicted if is_hidden else pixel)


def test_figure_has_a_row_for_each_image_and_a_title_for_each_column():
    found = reconstruction.combine(*some_reconstruction(), GRID)
    with style.theme("light"):
        figure = reconstruction.plot_reconstructions(found)
    panels = figure.axes
    assert len(panels) == 8
    titles = [panel.get_title() for panel in panels if panel.get_title()]
    assert titles == ["original", "masked", "reconstruction", "with visible patches"]
    shown = [np.asarray(panel.images[0].get_array()) for panel in panels[:4]]
    for pixels, column in zip(shown, found, strict=True):
        np.testing.assert_array_equal(pixels, column[0])
