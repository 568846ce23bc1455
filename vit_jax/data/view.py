"""Views: the part of an image that becomes a training or evaluation example."""

import dataclasses
import math

Size = tuple[int, int]  # Height, width.
Box = tuple[int, int, int, int]  # Top, left, height, width.
LONGEST = 16  # Longest side that is resized, in sides of the target.


@dataclasses.dataclass(frozen=True)
class View:
    """A window of a box of an image that is resized, then padded by reflection."""

    box: Box
    resized: Size
    window: Box
    padding: int = 0

    def shrink(self) -> int:
        """Returns the largest of 8, 4, 2 and 1 by which the image may be divided first.

        The box is then still at least as large as the resized image.
        """
        least = min(old // new for old, new in zip(self.box[2:], self.resized))
        return next((factor for factor in (8, 4, 2) if least >= factor), 1)

    def of_smaller(self, factor: int) -> "View":
        """Returns the same view of the image divided by `factor`."""
        top, left, height, width = self.box
        box = (round(top / factor), round(left / factor), height // factor, width // factor)
        return dataclasses.replace(self, box=box)


def box_view(box: Box, size: Size) -> View:
    """Returns the view of a box resized to `size`."""
    return View(box, size, (0, 0, *size))


def window_view(
    old: Size, new: Size, fraction: float, position: tuple[float, float], padding: int = 0
) -> View:
    """Returns a window of size `new` in the image resized so that it covers `new / fraction`.

    Args:
      old: size of the image.
      position: of the window, down and across, from 0 to below 1.
      padding: pixels by which the window may leave the image, which is mirrored there.
    """
    # A very long image is cut first, at the same position: memory depends on the target alone.
    longest = [math.ceil(LONGEST * new[k] * old[1 - k] / new[1 - k]) for k in (0, 1)]
    cut = [min(side, most) for side, most in zip(old, longest)]
    box = [int(u * (side - part + 1)) for u, side, part in zip(position, old, cut)] + cut
    scale = max(side / part for side, part in zip(new, cut)) / fraction
    resized = tuple(round(side * scale) for side in cut)
    offsets = [side + 2 * padding - part + 1 for side, part in zip(resized, new)]
    top, left = (int(u * count) for u, count in zip(position, offsets))
    return View(tuple(box), resized, (top, left, *new), padding)
