"""A config on devices that need not be here: what it needs, and what would make it fit."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from vit_jax.config.schema import Config
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import flops
from vit_jax.models.registry import ViT
from vit_jax.planning import communication, memory
from vit_jax.planning.accelerators import Accelerator
from vit_jax.tasks import registry as task_registry
from vit_jax.training.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Setting:
    """One config on so many devices of a kind."""

    config: Config
    device: Accelerator
    num_devices: int
    num_classes: int

    @property
    def mesh(self) -> AbstractMesh:
        """That of the config, of devices that need not be here; ConfigError if none fits."""
        shape = mesh_lib.mesh_shape(self.num_devices, **dataclasses.asdict(self.config.mesh))
        return AbstractMesh(shape, mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(shape))

    @functools.cached_property
    def model(self):
        """The model with the kernels of accelerators, wherever this runs."""
        model = task_registry.build_model(self.config, self.num_classes)
        if isinstance(model, ViT) and model.config.kernels == "auto":
            model = model.clone(config=dataclasses.replace(model.config, kernels="plain"))
        return model

    @property
    def state(self) -> TrainState:
        """Shapes and places of what is kept from step to step."""
        alike = dataclasses.replace(self.config.model, dtype="float32", remat="none", scan=False)
        config = Config(
            model=alike,
            data=self.config.data,
            task=self.config.task,
            optimizer=self.config.optimizer,
        )
        return _state(config, self.num_classes, self.mesh)

    def memory(self, widened: bool = False) -> memory.Memory:
        mesh_lib.check_batch_size(self.config.batch_size, self.mesh, self.config.accumulate)
        return memory.estimate(self.config, self.model, self.state, widened=widened)

    def fits(self) -> bool:
        return self.memory().peak <= self.device.memory

    def traffic(self) -> list[communication.Traffic]:
        """What theory says devices send each other."""
        config, model = self.config, self.model
        num_layers, activations = 0, 0.0
        if isinstance(model, ViT):
            num_layers = model.size.num_layers
            width = model.size.hidden_size * jnp.dtype(model.config.dtype).itemsize
            examples = config.batch_size / mesh_lib.num_batch_shards(self.mesh) / config.accumulate
            activations = examples * memory.num_tokens(model) * width
        return communication.theory(
            memory.in_use(model, self.state.params),
            num_layers=num_layers,
            activations=activations,
            remat=config.model.remat,
            accumulate=config.accumulate,
            gradients_per_step=self.num_gradients,
        )

    def flops(self) -> int:
        """Of the model in a step, as Table 6 counts them."""
        per_gradient = flops.training_flops(self.model, self.config.batch_size)
        return per_gradient * self.num_gradients

    def recomputed_flops(self) -> int:
        """What the hardware does on top: all of each layer again, or its attention."""
        if not isinstance(self.model, ViT):
            return 0
        T, size = memory.num_tokens(self.model), self.model.size
        D, M = size.hidden_size, size.mlp_size
        attention = 2 * T * T * D
        of_layer = {"none": 0, "dots": attention, "full": attention + T * (4 * D * D + 2 * D * M)}
        macs = size.num_layers * of_layer[self.config.model.remat] * self.config.batch_size
        return flops.FLOPS_PER_MAC * macs * self.num_gradients

    @property
    def num_gradients(self) -> int:
        """Of a step: SAM takes two."""
        return 1 + (self.config.optimizer.sam_rho is not None)

    def change(self, section: str = "", **fields) -> "Setting":
        """The same with other fields of the config, or of one section of it."""
        if section:
            fields = {section: dataclasses.replace(getattr(self.config, section), **fields)}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **fields))


@functools.lru_cache(maxsize=16)
def _state(config: Config, num_classes: int, mesh: AbstractMesh) -> TrainState:
    return memory.place_state(_shapes(config, num_classes), mesh)


@functools.lru_cache(maxsize=4)
def _shapes(config: Config, num_classes: int) -> TrainState:
    return memory.state_shapes(config, task_registry.build_model(config, num_classes))


def largest_batch(setting: Setting) -> int | None:
    """The largest batch that fits and that devices can share; None if not even the smallest."""
    unit = mesh_lib.num_batch_shards(setting.mesh) * setting.config.accumulate

    def fits(count: int) -> bool:
        return setting.change(batch_size=count * unit).fits()

    if not fits(1):
        return None
    low = 1
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * unit


def advise(setting: Setting) -> tuple[list[str], Setting]:
    """What to change until it fits, mildest first, and the setting that comes of it.

    Of each kind of change the first that is enough, or else the strongest; of those between the
    first and the last, what turns out not to be needed is left out.
    """
    changes: list[Change] = []
    for kind in (_dtype, _fsdp, _remat, _accumulate, _batch_size, _tensor):
        changed = _apply(setting, changes)
        if changed.fits():
            break
        options = list(kind(changed))
        enough = (each for each in options if _apply(changed, [each]).fits())
        changes += [each] if (each := next(enough, options[-1] if options else None)) else []
    for each in reversed(changes[1:-1]):
        others = [other for other in changes if other is not each]
        changed = _apply(setting, others)
        shares = mesh_lib.num_batch_shards(changed.mesh) * changed.config.accumulate
        if changed.config.batch_size % shares == 0 and changed.fits():
            changes = others
    words = [
        f"{section}.{name}={value}" if section else f"{name}={value}"
        for section, fields in changes
        for name, value in fields.items()
        if value != -1
    ]
    return words, _apply(setting, changes)


Change = tuple[str, dict]  # Section of the config, or '', and new values of its fields.


def _apply(setting: Setting, changes: Iterable[Change]) -> Setting:
    for section, fields in changes:
        setting = setting.change(section, **fields)
    return setting


def _dtype(setting: Setting) -> Iterator[Change]:
    if setting.config.model.dtype == "float32":
        yield "model", {"dtype": "bfloat16"}


def _fsdp(setting: Setting) -> Iterator[Change]:
    shape = setting.mesh.shape
    most = shape["data"] * shape["fsdp"]
    for fsdp in range(shape["fsdp"] + 1, most + 1):
        if most % fsdp == 0:
            yield "mesh", {"data": -1, "fsdp": fsdp}


def _remat(setting: Setting) -> Iterator[Change]:
    if isinstance(setting.model, ViT):
        stronger = {"none": ("dots", "full"), "dots": ("full",), "full": ()}
        for remat in stronger[setting.config.model.remat]:
            yield "model", {"remat": remat}


def _accumulate(setting: Setting) -> Iterator[Change]:
    examples = setting.config.batch_size // mesh_lib.num_batch_shards(setting.mesh)
    accumulate = 2 * setting.config.accumulate
    while examples % accumulate == 0:
        yield "", {"accumulate": accumulate}
        accumulate *= 2


def _batch_size(setting: Setting) -> Iterator[Change]:
    if batch_size := largest_batch(setting):
        yield "", {"batch_size": batch_size}


def _tensor(setting: Setting) -> Iterator[Change]:
    """Fewer, larger shares: an example lies on several devices."""
    if not isinstance(setting.model, ViT):
        return
    shares, heads = mesh_lib.num_batch_shards(setting.mesh), setting.model.size.num_heads
    for tensor in range(2, heads + 1):
        if heads % tensor == 0 and shares % tensor == 0:
            yield "mesh", {"data": -1, "fsdp": shares // tensor, "tensor": tensor}
