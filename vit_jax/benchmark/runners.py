"""Who is timed by the verb `benchmark`, and on what: each measurement is a process of its own."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from vit_jax import config as config_lib
from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError
from vit_jax.models.flops import FLOPS_PER_MAC, FORWARDS_PER_STEP, forward_macs
from vit_jax.models.registry import ViT
from vit_jax.tasks.registry import build_model

# XLA's memory for a step on a CPU comes from malloc, which hands it back to the system after the
# step, to have every page zeroed anew in the next: glibc is told to keep it (mallopt(3)).
TUNED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
}
OURS = "vit_jax"
OUT_OF_MEMORY = "out of memory"
PEERS = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is timed: one row of the table."""

    mode: str
    config: Config
    options: tuple[str, ...]  # What the user changed, as FIELD=VALUE.
    warmup: int
    steps: int

    @property
    def model(self) -> ViT:
        return build_model(self.config, self.config.data.num_classes)

    @property
    def title(self) -> str:
        config = self.config
        return f"{config.model.name} {config.model.dtype} {self.mode}, batch {config.batch_size}"

    def record(self) -> dict:
        """What a line of the results says of its cell."""
        config = self.config
        axes = dataclasses.asdict(config.mesh).items()
        forwards = FORWARDS_PER_STEP if self.mode == "training" else 1
        macs = forward_macs(self.model) * config.batch_size
        return {
            "model": config.model.name,
            "image_size": config.data.image_size,
            "batch": config.batch_size,
            "dtype": config.model.dtype,
            "mode": self.mode,
            "mesh": ",".join(f"{axis}:{size}" for axis, size in axes if size not in (1, -1)),
            "options": " ".join(self.options),
            "warmup": self.warmup,
            "step_flops": FLOPS_PER_MAC * forwards * macs,
        }


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who is timed: a command that takes JSON for its last argument and prints JSON."""

    name: str
    command: tuple[str, ...]
    task: dict
    env: dict[str, str]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def measure(self, caches: str) -> dict:
        """What the command found, in a process of its own, with its caches in that folder.

        Raises ConfigError for what it refuses and for a peer that fails, RuntimeError where our
        own command fails.
        """
        places = {"XDG_CACHE_HOME": caches, "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
        task = json.dumps(self.task | {"started": time.time()})
        done = subprocess.run(
            [*self.command, task],
            env=os.environ | places | self.env,
            capture_output=True,
            text=True,
        )
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            found = json.loads(lines[-1])
            if found.get("error") not in (None, OUT_OF_MEMORY):
                raise ConfigError(found["error"])
            return found
        if self.is_ours:
            raise RuntimeError(f"{self.name} ended with {done.returncode}:\n{done.stderr}")
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise ConfigError(f"{self.name} ended with {done.returncode}: {' '.join(last)}")


def ours(cell: Cell, env: dict[str, str], tuned: bool, **task) -> list[Contestant]:
    """Our train step or forward pass; once more, with malloc tuned, if so wished."""
    root = str(pathlib.Path(__file__).parents[2])
    code = (
        f"import sys; sys.path.append({root!r}); from vit_jax.benchmark.worker import main; main()"
    )
    config = config_lib.to_dict({"": cell.config})
    task = {"mode": cell.mode, "config": config, "warmup": cell.warmup, "steps": cell.steps} | task
    envs = {OURS: env} | ({f"{OURS} tuned": TUNED | env} if tuned else {})
    return [
        Contestant(name, (sys.executable, "-c", code), task, each) for name, each in envs.items()
    ]


@dataclasses.dataclass(frozen=True)
class Timm:
    """timm on PyTorch, in an interpreter that has both."""

    python: str
    compiled: bool | None  # Whether torch.compile takes part; None for where CUDA does.

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises ConfigError where timm is not installed, or has no such model."""
        code = "import importlib.util as u; print(*[n for n in {} if u.find_spec(n) is None])"
        command = [self.python, "-c", code.format(("torch", "timm"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise ConfigError(f"--peer_python={self.python}: {error.strerror}.") from error
        if done.returncode or done.stdout.strip():
            raise ConfigError(
                f"--peer=timm needs torch and timm, and {self.python} has no "
                f"{' and no '.join(done.stdout.split()) or 'Python that works'}: pip install "
                "torch timm, or name an interpreter that has them by --peer_python=PATH."
            )
        for cell in cells:
            self.shape(cell)

    def shape(self, cell: Cell) -> dict:
        """The keywords of timm's VisionTransformer for the cell's model."""
        model = cell.model
        if not isinstance(model, ViT) or model.stem is not None:
            raise ConfigError(f"--peer=timm: {cell.config.model.name} is no plain ViT; time one.")
        size = model.size
        return {
            "img_size": model.image_size,
            "patch_size": model.patch_size,
            "num_classes": model.num_classes,
            "embed_dim": size.hidden_size,
            "depth": size.num_layers,
            "num_heads": size.num_heads,
            # timm rounds the product down; half a unit more, and it is our size.
            "mlp_ratio": (size.mlp_size + 0.5) / size.hidden_size,
        }

    def contestants(self, cell: Cell, platform: str, num_devices: int) -> list[Contestant]:
        """timm's two ways of attention, and the compiled model, on what ours ran on."""
        if platform not in ("cpu", "gpu"):
            raise ConfigError(f"--peer=timm runs on CPUs and on CUDA, not on this {platform}.")
        if platform == "gpu" and num_devices > 1:
            raise ConfigError(
                f"--peer=timm runs on one GPU, and ours on {num_devices}; CUDA_VISIBLE_DEVICES=0 "
                "leaves one to both."
            )
        rule = cell.config.optimizer
        task = {
            "mode": cell.mode,
            "platform": platform,
            "dtype": cell.config.model.dtype,
            "batch": cell.config.batch_size,
            "shape": self.shape(cell),
            "lr": rule.lr,
            "weight_decay": rule.weight_decay,
            "warmup": cell.warmup,
            "steps": cell.steps,
        }
        ways = [("timm fused", "1", False), ("timm explicit", "0", False)]
        if self.compiled or (self.compiled is None and platform == "gpu"):
            ways.append(("timm compiled", "1", True))
        command = (self.python, str(PEERS / "timm_peer.py"))
        return [
            Contestant(name, command, task | {"compiled": compiled}, {"TIMM_FUSED_ATTN": fused})
            for name, fused, compiled in ways
        ]
