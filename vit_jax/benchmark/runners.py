"""Benchmark cases, and the runners that time them: vit_jax and peers, each in its own process."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from vit_jax import config as config_lib
from vit_jax.atomic_io import to_json
from vit_jax.config.schema import Config
from vit_jax.errors import ConfigError
from vit_jax.models.flops import FLOPS_PER_MAC, FORWARDS_PER_STEP, forward_macs
from vit_jax.models.registry import ViT
from vit_jax.tasks.registry import build_model

# Defaults of JAX and glibc, instead of the settings of `distributed/process.py`.
UNTUNED = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "true", "MALLOC_ARENA_TEST": "8"}
OURS = "vit_jax"
OUT_OF_MEMORY = "out of memory"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the benchmark table: a mode, model, batch and dtype to time."""

    mode: str  # "training" or "inference".
    config: Config
    options: tuple[str, ...]  # FIELD=VALUE of the fields that the user changed.
    warmup: int  # Untimed steps.
    steps: int  # Timed steps.

    @property
    def model(self) -> ViT:
        return build_model(self.config, self.config.data.num_classes)

    @property
    def title(self) -> str:
        config = self.config
        return f"{config.model.name} {config.model.dtype} {self.mode}, batch {config.batch_size}"

    def record(self) -> dict:
        """Returns the fields that describe the case in a record of the results."""
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
class Runner:
    """A command that times a case: its last argument and its last line of output are JSON."""

    name: str
    command: tuple[str, ...]
    arguments: dict  # JSON argument of the command.
    env: dict[str, str]  # Environment variables of the process.

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def measure(self, caches: str) -> dict:
        """Runs the command in a new process and returns its result.

        Args:
          caches: folder of the compilation caches.

        Raises:
          ConfigError: the command rejects its arguments, or a peer fails.
          RuntimeError: the command of vit_jax fails.
        """
        cache_env = {"XDG_CACHE_HOME": caches, "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
        arguments = to_json(self.arguments | {"started": time.time()})
        done = subprocess.run(
            [*self.command, arguments],
            env=os.environ | cache_env | self.env,
            capture_output=True,
            text=True,
        )
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            result = json.loads(lines[-1])
            if result.get("error") not in (None, OUT_OF_MEMORY):
                raise ConfigError(result["error"])
            return result
        if self.is_ours:
            raise RuntimeError(
                f"{self.name} failed with exit code {done.returncode}:\n{done.stderr}"
            )
        raise ConfigError(
            f"{self.name} failed with exit code {done.returncode}: {last_line(done.stderr)}"
        )


def last_line(text: str) -> str:
    """Returns the last line that is not blank, such as the error of a traceback; "" if none is."""
    return ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]


def vit_jax_runners(case: Case, env: dict[str, str], untuned: bool, **arguments) -> list[Runner]:
    """Returns the runner of vit_jax and, if `untuned`, a second one with the variables UNTUNED."""
    root = str(pathlib.Path(__file__).parents[2])
    code = (
        f"import sys; sys.path.append({root!r}); from vit_jax.benchmark.worker import main; main()"
    )
    config = config_lib.to_dict({"": case.config})
    arguments |= {"mode": case.mode, "config": config}
    arguments |= {"warmup": case.warmup, "steps": case.steps}
    envs = {OURS: env} | ({f"{OURS} untuned": UNTUNED | env} if untuned else {})
    return [
        Runner(name, (sys.executable, "-c", code), arguments, variables)
        for name, variables in envs.items()
    ]
