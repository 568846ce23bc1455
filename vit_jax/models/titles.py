"""Names of models as in the paper: ViT-B/16, R50x1+ViT-B/32, ResNet152x2."""

import dataclasses
import re

from vit_jax.config.schema import Model
from vit_jax.models.registry import build
from vit_jax.models.vit import ViT

SHAPE = ("num_layers", "hidden_size", "mlp_size")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Dimensions of a Vision Transformer that Figure 8 scales."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    patch: int  # Pixels.


def title_of(section: Model, image_size: int | tuple[int, int]) -> str:
    """Returns the paper's name of a `config.model` section, or depth and width: ViT-3x96/8."""
    title = model_title(section.name)
    if section.patch is not None:
        title = re.sub(r"/\d+$", f"/{section.patch}", title)
    if any(getattr(section, field) is not None for field in SHAPE):
        shape = shape_of(section, image_size)
        title = re.sub(r"ViT-[^/]+", f"ViT-{shape.num_layers}x{shape.hidden_size}", title)
    return title


def described(section: Model, image_size: int | tuple[int, int]) -> str:
    """Returns the name of a `config.model` section, with the title if its shape is changed."""
    title = title_of(section, image_size)
    is_changed = title != model_title(section.name)
    return f"{title} (changed from {section.name})" if is_changed else section.name


def shape_of(section: Model, image_size: int | tuple[int, int]) -> Shape | None:
    # The class of the MLP has no effect on the shape, and may be code of the user.
    plain = dataclasses.replace(section, mlp="mlp")
    model = build(plain, num_classes=1, image_size=image_size)
    if not isinstance(model, ViT):
        return None
    size = model.size
    return Shape(size.num_layers, size.hidden_size, size.mlp_size, model.patch_pixels)


def model_title(name: str) -> str:
    """Returns the paper's name of a model: ViT-B/16 for vit_b16, R50x1+ViT-B/32 for r50_b32."""
    if found := re.fullmatch(r"bit_r(\d+x\d+)", name):
        return f"ResNet{found[1]}"
    found = re.fullmatch(r"(?:vit|r(\d*))_([a-z0-9]*?[a-z])(\d+)", name)
    if not found:
        return name
    size = {"gg": "G", "so400m": "So400m"}.get(found[2], found[2].capitalize())
    size = "g" if found[2] == "g" else size
    stem = f"R{found[1]}x1+" if found[1] else "R+" if name.startswith("r") else ""
    return f"{stem}ViT-{size}/{found[3]}"
