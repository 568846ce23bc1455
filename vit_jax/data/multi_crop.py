"""Several crops of an image as one training example (DINO, arXiv:2104.14294)."""

import dataclasses

import numpy as np

from vit_jax.config.schema_data import NUM_GLOBAL, Data
from vit_jax.data import augment, decode
from vit_jax.data.block_masks import BlockMasks
from vit_jax.data.decode import Encoded
from vit_jax.data.preprocess import Columns, apply_steps, crop_image
from vit_jax.data.view import Size


@dataclasses.dataclass(frozen=True)
class MultiCropRecipe:
    """Turns images into the crops of self-distillation: (image, generator) -> columns.

    The columns are `image` 2 H W 3, the global crops; `local` n h w 3, the local crops, if
    `data.local_crops` is not 0; and `is_masked` 2 N bool, the masked patches of the global crops,
    with `masks`. Pixels are float32 in [-1, 1].

    An image is `Encoded`, or H W 3 uint8, and is decoded once for all crops. All random numbers
    come from the generator: first the boxes of all crops, then the steps of each, then the masks.

    Raises ConfigError for an augmentation that cannot be made or a decoder that is not installed.

    Attributes:
      data: the first global crop has the augmentation `augment`, the second `second_augment`, or
        else the same, and each local crop `local_augment`.
      size: height and width of the global crops.
    """

    data: Data
    size: Size
    masks: BlockMasks | None = None

    def __post_init__(self):
        self._views()
        decode.check_decoder(self.data.decoder)

    @property
    def columns(self) -> Columns:
        """Shape and dtype of what the recipe gives a training batch for an example."""
        float32, columns = np.dtype(np.float32), {}
        columns["image"] = ((NUM_GLOBAL, *self.size, 3), float32)
        if self.data.local_crops:
            columns["local"] = ((self.data.local_crops, *self.data.local_sides, 3), float32)
        if self.masks:
            columns["is_masked"] = ((NUM_GLOBAL, self.masks.num_patches), np.dtype(bool))
        return columns

    def __call__(
        self, image: Encoded | np.ndarray, random: np.random.Generator
    ) -> dict[str, np.ndarray]:
        views = self._views()
        crops = crop_image(image, [(steps.crop, size) for steps, size in views], self.data, random)
        pixels = [apply_steps(crop, steps, random) for crop, (steps, _) in zip(crops, views)]
        columns = {"image": np.stack(pixels[:NUM_GLOBAL])}
        if self.data.local_crops:
            columns["local"] = np.stack(pixels[NUM_GLOBAL:])
        if self.masks:
            columns["is_masked"] = self.masks(random, NUM_GLOBAL)
        return columns

    def _views(self) -> list[tuple[augment.Augmentation, Size]]:
        """Returns the augmentation and the size of each crop."""
        data = self.data
        first, second, local = (
            augment.parse(text, field) for field, text in augment.augmentations(data).items()
        )
        return [
            (first, self.size),
            (second, self.size),
            *[(local, data.local_sides)] * data.local_crops,
        ]
