"""A config on hypothetical devices: memory, FLOPs and collectives of a training step."""

import dataclasses
import functools

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from vit_jax.config.schema import Config
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import flops
from vit_jax.models.registry import ViT
from vit_jax.planning.accelerators import Accelerator
from vit_jax.planning.communication import Collective, expected_collectives
from vit_jax.tasks import registry as task_registry
from vit_jax.training import memory
from vit_jax.training.train_step import TrainState


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A config on a number of devices of one kind, which need not exist on this machine."""

    config: Config
    device: Accelerator
    num_devices: int
    num_classes: int

    @property
    def mesh(self) -> AbstractMesh:
        """Mesh of the config; raises ConfigError if it does not fit the number of devices."""
        return mesh_lib.abstract_mesh(self.num_devices, **dataclasses.asdict(self.config.mesh))

    @functools.cached_property
    def model(self):
        """The model with the kernels that it has on accelerators, on any machine."""
        model = task_registry.build_model(self.config, self.num_classes)
        if isinstance(model, ViT) and model.config.kernels == "auto":
            model = model.clone(config=dataclasses.replace(model.config, kernels="plain"))
        return model

    @property
    def state(self) -> TrainState:
        """ShapeDtypeStructs with shardings of the training state."""
        # Options that do not affect the state are set to one value, for more cache hits.
        model = dataclasses.replace(self.config.model, dtype="float32", remat="none", scan=False)
        config = Config(
            model=model,
            data=self.config.data,
            task=self.config.task,
            optimizer=self.config.optimizer,
        )
        return _sharded_state(config, self.num_classes, self.mesh)

    def memory(self, widened: bool = False) -> memory.Memory:
        """Returns the memory per device.

        Args:
          widened: count bfloat16 as four bytes, as XLA stores it on a CPU.
        """
        mesh_lib.check_batch_size(self.config.batch_size, self.mesh, self.config.accumulate)
        return memory.estimate(self.config, self.model, self.state, widened=widened)

    def fits(self) -> bool:
        """Returns True if the peak memory fits the memory that JAX preallocates."""
        return self.memory().peak <= self.device.usable

    def collectives(self) -> list[Collective]:
        """Returns the collectives of a training step in theory."""
        config, model = self.config, self.model
        num_layers, activation_bytes = 0, 0.0  # Of the batch of one device.
        if isinstance(model, ViT):
            num_layers = model.size.num_layers
            width = model.size.hidden_size * jnp.dtype(model.config.dtype).itemsize
            images = config.batch_size * task_registry.num_views(config, model)
            tokens = images / mesh_lib.num_batch_shards(self.mesh) * model.num_tokens
            activation_bytes = tokens * width
        objective = task_registry.make_task(config.task, model)
        has_teacher = task_registry.teacher_targets_of(objective) is not None
        return expected_collectives(
            memory.cast_layer_kernels(model, self.state.params),
            num_layers=num_layers,
            activation_bytes=activation_bytes / config.accumulate,
            remat=config.model.remat,
            accumulate=config.accumulate,
            gradients_per_step=self.num_gradients,
            teacher_activation_bytes=activation_bytes if has_teacher else None,
        )

    def flops(self) -> int:
        """Returns the model FLOPs of a step, counted as in Table 6."""
        per_gradient = flops.training_flops(self.model, self.config.batch_size)
        return per_gradient * self.num_gradients

    def recomputed_flops(self) -> int:
        """Returns the FLOPs that `model.remat` adds: all of each layer, or its attention."""
        if not isinstance(self.model, ViT):
            return 0
        T, size = self.model.num_tokens, self.model.size
        D, M = size.hidden_size, size.mlp_size
        attention = 2 * T * T * D
        layer = attention + T * (4 * D * D + 2 * D * M)
        macs_per_layer = {"none": 0, "dots": attention, "full": layer}[self.config.model.remat]
        macs = size.num_layers * macs_per_layer * self.config.batch_size
        return flops.FLOPS_PER_MAC * macs * self.num_gradients

    @property
    def num_gradients(self) -> int:
        """Number of gradients in a step; SAM computes two."""
        return 1 + (self.config.optimizer.sam_rho is not None)

    def replace(self, section: str = "", **fields) -> "Scenario":
        """Returns a copy with other fields of the config, or of one section of it."""
        if section:
            fields = {section: dataclasses.replace(getattr(self.config, section), **fields)}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **fields))


@functools.lru_cache(maxsize=16)
def _sharded_state(config: Config, num_classes: int, mesh: AbstractMesh) -> TrainState:
    return memory.add_shardings(_state_shapes(config, num_classes), mesh)


@functools.lru_cache(maxsize=4)
def _state_shapes(config: Config, num_classes: int) -> TrainState:
    return memory.state_shapes(config, task_registry.build_model(config, num_classes))
