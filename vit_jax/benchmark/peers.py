"""Vision Transformers of other packages, timed beside vit_jax by the files in benchmarks/peers/.

An adapter, NAME_peer.py, runs in an interpreter that has the package; it takes a case as JSON and
prints a measurement, as `vit_jax.benchmark.worker` does.
"""

import dataclasses
import pathlib
import subprocess
from collections.abc import Sequence

from vit_jax.benchmark.runners import Case, Runner, last_line
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.encoders import parse_name
from vit_jax.models.registry import ViT

FOLDER, SUFFIX = pathlib.Path("benchmarks", "peers"), "_peer.py"
# Environment variables of each runner; the other peers have one runner without variables.
VARIANTS = {
    "timm": {
        "timm fused": {"TIMM_FUSED_ATTN": "1"},
        "timm explicit": {"TIMM_FUSED_ATTN": "0"},
    },
}
WITH_ENCODERS = ("timm",)  # They have the families of models/encoders.py.
OTHER_MODELS = ("vit_pytorch",)  # Their numbers of parameters differ from those of vit_jax.
COMPILED = {"timm": {"timm compiled": {"TIMM_FUSED_ATTN": "1"}}}  # With torch.compile.


def find_adapters() -> dict[str, pathlib.Path]:
    """Returns peer -> adapter, from the clone that contains vit_jax or from the current folder.

    Raises:
      ConfigError: neither has the folder benchmarks/peers/.
    """
    for root in (pathlib.Path(__file__).parents[2], pathlib.Path.cwd()):
        paths = sorted((root / FOLDER).glob(f"*{SUFFIX}"))
        if paths:
            return {path.name.removesuffix(SUFFIX): path for path in paths}
    raise ConfigError(
        f"--peer: no folder {FOLDER}/ beside the package vit_jax or in the current folder. It is "
        "in the repository of vit_jax; run the command in a clone."
    )


def find_peers(names: Sequence[str], python: str, compiled: bool | None) -> list["Peer"]:
    """Returns peers that must run, or, without names, all peers; those may fail.

    Args:
      names: peers, such as "timm".
      python: interpreter that has their packages.
      compiled: time torch.compile as well; None for only on CUDA.

    Raises:
      ConfigError: a name is unknown, or there are no adapters.
    """
    adapters = find_adapters()
    for name in set(names) - set(adapters):
        raise ConfigError(
            f"--peer={name} is unknown; choose from {', '.join(adapters)}.{nearest(name, adapters)}"
        )
    return [
        Peer(name, adapters[name], python, compiled, is_required=bool(names))
        for name in names or adapters
    ]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A package with a Vision Transformer, run by a Python interpreter that has the package."""

    name: str
    adapter: pathlib.Path
    python: str
    compiled: bool | None = None
    is_required: bool = True  # A failure ends the command; otherwise it is a record.

    @property
    def must_match(self) -> bool:
        """Another number of parameters than that of vit_jax is an error."""
        return self.is_required and self.name not in OTHER_MODELS

    def check(self, cases: Sequence[Case]) -> None:
        """Raises ConfigError if the adapter cannot run or has no equivalent of a model."""
        for case in cases:
            self.shape(case)
        try:
            done = subprocess.run([self.python, self.adapter], capture_output=True, text=True)
        except OSError as error:
            raise ConfigError(f"--peer_python={self.python}: {error.strerror}.") from error
        if done.returncode:
            reason = f"--peer={self.name} does not run in {self.python}: {last_line(done.stderr)}"
            if self.is_required:
                reason += (
                    f"; install the packages that {FOLDER}/{self.adapter.name} imports, or give an "
                    "interpreter that has them with --peer_python=PATH."
                )
            raise ConfigError(reason)

    def shape(self, case: Case) -> dict:
        """Returns the shape of the model of a case; the keys are those of benchmarks/peers/."""
        model = case.model
        if not isinstance(model, ViT) or model.stem is not None:
            raise ConfigError(
                f"--peer={self.name} supports plain ViTs only, not {case.config.model.name}; "
                "omit --peer."
            )
        size = model.size
        encoder = case.config.model.name if parse_name(case.config.model.name) else None
        if encoder and self.name not in WITH_ENCODERS:
            raise ConfigError(
                f"--peer={self.name} does not have --model={encoder}; choose {WITH_ENCODERS[0]}."
            )
        return {
            "encoder": encoder,
            "image_size": model.image_size,
            "patch_size": model.patch_size,
            "num_classes": model.num_classes,
            "hidden_size": size.hidden_size,
            "num_layers": size.num_layers,
            "num_heads": size.num_heads,
            "mlp_size": size.mlp_size,
        }

    def runners(self, case: Case, platform: str, num_devices: int) -> list[Runner]:
        """Returns the runners of the peer, such as timm's two implementations of attention.

        Args:
          case: the case to time.
          platform: platform that vit_jax ran on, such as "cpu".
          num_devices: number of devices that vit_jax ran on.
        """
        if platform not in ("cpu", "gpu"):
            raise ConfigError(
                f"--peer={self.name} supports CPUs and CUDA GPUs, not {platform}; omit --peer."
            )
        if platform == "gpu" and num_devices > 1:
            raise ConfigError(
                f"--peer={self.name} runs on one GPU, but vit_jax ran on {num_devices}; set "
                "CUDA_VISIBLE_DEVICES=0 to use one GPU for both."
            )
        optimizer = case.config.optimizer
        arguments = {
            "mode": case.mode,
            "platform": platform,
            "dtype": case.config.model.dtype,
            "batch": case.config.batch_size,
            "shape": self.shape(case),
            "lr": optimizer.lr,
            "weight_decay": optimizer.weight_decay,
            "warmup": case.warmup,
            "steps": case.steps,
        }
        command = (self.python, str(self.adapter))
        compiles = self.compiled or (self.compiled is None and platform == "gpu")
        return [
            Runner(name, command, arguments | {"compiled": compiled}, env)
            for compiled in ((False, True) if compiles else (False,))
            for name, env in self._variants(compiled).items()
        ]

    def _variants(self, compiled: bool) -> dict[str, dict[str, str]]:
        if compiled:
            return COMPILED.get(self.name, {})
        return VARIANTS.get(self.name, {self.name: {}})
