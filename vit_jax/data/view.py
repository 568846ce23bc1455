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


def crop_view(
    rule: str,
    old: Size,
    new: Size,
    fraction: float,
    side: int | Size | None,
    position: tuple[float, float],
) -> View:
    """Returns a window of size `new` of the image resized by a rule of `config.data.eval_crop`.

    The rules are those of the code bases that they are named after; 'center' is big_vision's.
    'algoperf' cuts the window out of the image itself, then resizes it.

    Args:
      old: size of the image.
      fraction: side of the window, of the short side resized.
      side: short side resized, or (height, width) to stretch the image to; None follows from
        `fraction`.
      position: of the window, down and across: 0, 0.5 for the centre, or 1.
    """
    if rule == "algoperf":
        k = 0 if old[0] * new[1] <= old[1] * new[0] else 1  # The axis that limits the window.
        cut = tuple(max(1, int(fraction * (old[k] * part // new[k]))) for part in new)
        offsets = (math.floor(u * (a - b) + 0.5) for u, a, b in zip(position, old, cut))
        return box_view((*offsets, *cut), new)
    centre = round if rule.startswith("timm") else math.floor  # timm rounds halves to even.
    target = tuple(math.floor(part / fraction) for part in new) if side is None else side
    if rule == "timm_squash" or isinstance(side, tuple):
        box, resized = (0, 0, *old), target
    else:
        cut = _without_ends(old, new)
        box = (*(math.floor(u * (a - b)) for u, a, b in zip(position, old, cut)), *cut)
        if rule == "center":
            scale = side / min(cut) if side else _cover(cut, new) / fraction
            resized = tuple(round(part * scale) for part in cut)
        elif side or target[0] == target[1]:
            short = side or target[0]
            resized = tuple(int(short * part / min(cut)) for part in cut)
        else:
            resized = tuple(round(part * _cover(cut, target)) for part in cut)
    top, left = (centre(u * (a - b)) for u, a, b in zip(position, resized, new))
    return View(box, resized, (top, left, *new))


def window_view(
    old: Size, new: Size, fraction: float, position: tuple[float, float], padding: int = 0
) -> View:
    """Returns a window of size `new` in the image resized so that it covers `new / fraction`.

    Args:
      old: size of the image.
      position: of the window, down and across, from 0 to below 1.
      padding: pixels by which the window may leave the image, which is mirrored there.
    """
    cut = _without_ends(old, new)
    box = (*(int(u * (side - part + 1)) for u, side, part in zip(position, old, cut)), *cut)
    scale = _cover(cut, new) / fraction
    resized = tuple(round(side * scale) for side in cut)
    offsets = [side + 2 * padding - part + 1 for side, part in zip(resized, new)]
    top, left = (int(u * count) for u, count in zip(position, offsets))
    return View(box, resized, (top, left, *new), padding)


def _cover(old: Size, new: Size) -> float:
    """Returns the least scale at which an image covers a size."""
    return max(side / part for side, part in zip(new, old))


def _without_ends(old: Size, new: Size) -> Size:
    """Returns the size that is left of a very long image: memory depends on the target alone."""
    longest = (math.ceil(LONGEST * new[k] * old[1 - k] / new[1 - k]) for k in (0, 1))
    return tuple(min(side, most) for side, most in zip(old, longest))
