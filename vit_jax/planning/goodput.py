"""Expected goodput of a run whose processes fail, and the best interval between checkpoints.

The model is that of Daly: failures are a Poisson process with a mean time between failures M, also
while a checkpoint is written and while the run restarts. Every failure loses the work since the
last checkpoint. Training for a time t and writing the checkpoint, d, then takes on average
M exp(R/M) (exp((t + d)/M) - 1), with R the time to restart.

Sources:
  J. W. Young, A first order approximation to the optimum checkpoint interval, Communications of
    the ACM 17(9), 1974, pages 530-531.
  J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
    Generation Computer Systems 22(3), 2006, pages 303-312.
"""

import dataclasses
import math

DISK_GB_S = 1.0  # 10^9 bytes per second: a local SSD, or a shared file system.
START_SECONDS = 60.0  # From a failure to the first step: scheduling, imports, compilation.


@dataclasses.dataclass(frozen=True)
class Failures:
    """Failures of a run, and what it costs to be prepared for them.

    Attributes:
      mtbf: mean time between failures in seconds.
      is_per_device: `mtbf` is that of one device; failures of devices are independent.
      checkpoint_seconds: time in which training waits for a checkpoint; None to compute it from
        the bytes of the state.
      restart_seconds: time from a failure to the first step, without lost steps; None for
        START_SECONDS and the time to read the state.
      disk_gb_s: speed in 10^9 bytes per second of reading and writing a checkpoint.
    """

    mtbf: float
    is_per_device: bool = False
    checkpoint_seconds: float | None = None
    restart_seconds: float | None = None
    disk_gb_s: float = DISK_GB_S


def expected_goodput(
    interval: float, checkpoint_seconds: float, restart_seconds: float, mtbf: float
) -> float:
    """Returns the fraction of the time that trains, in Daly's complete model.

    Args:
      interval: seconds of training between two checkpoints.
      checkpoint_seconds: seconds in which training waits for a checkpoint.
      restart_seconds: seconds from a failure to the next training step.
      mtbf: mean time between failures in seconds.
    """
    try:
        attempts = math.expm1((interval + checkpoint_seconds) / mtbf)
        return interval / (mtbf * math.exp(restart_seconds / mtbf) * attempts)
    except OverflowError:  # So many failures that no checkpoint is reached.
        return 0.0


def young_interval(checkpoint_seconds: float, mtbf: float) -> float:
    """Returns Young's best interval of training between checkpoints in seconds: sqrt(2 d M)."""
    return math.sqrt(2 * checkpoint_seconds * mtbf)


def daly_interval(checkpoint_seconds: float, mtbf: float) -> float:
    """Returns Daly's higher-order estimate of the best interval in seconds.

    With x = d / (2 M), it is sqrt(2 d M) (1 + sqrt(x) / 3 + x / 9) - d, or M if d is at least 2 M.
    """
    x = checkpoint_seconds / (2 * mtbf)
    if x >= 1:
        return mtbf
    return young_interval(checkpoint_seconds, mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - (
        checkpoint_seconds
    )


def plan_goodput(
    failures: Failures,
    *,
    num_bytes: int,
    num_devices: int,
    step_seconds: float,
    steps: int,
    checkpoint_every: int,
) -> dict:
    """Returns the expected goodput of a run, and the intervals of Young and Daly in steps.

    Args:
      failures: how often the run fails, and the costs.
      num_bytes: bytes of a checkpoint.
      num_devices: number of devices.
      step_seconds: seconds of a training step.
      steps: steps of the run.
      checkpoint_every: steps between checkpoints in the config.
    """
    mtbf = failures.mtbf / (num_devices if failures.is_per_device else 1)
    disk_seconds = num_bytes / (failures.disk_gb_s * 1e9)
    checkpoint, restart = failures.checkpoint_seconds, failures.restart_seconds
    checkpoint = disk_seconds if checkpoint is None else checkpoint
    restart = START_SECONDS + disk_seconds if restart is None else restart

    def with_interval(num_steps: int) -> dict:
        goodput = expected_goodput(num_steps * step_seconds, checkpoint, restart, mtbf)
        hours = steps * step_seconds / goodput / 3600 if goodput else None
        return {"checkpoint_every": num_steps, "goodput": goodput, "hours": hours}

    def in_steps(interval: float) -> int:
        return min(max(1, round(interval / step_seconds)), steps)

    return {
        "mtbf_seconds": mtbf,
        "checkpoint_bytes": num_bytes,
        "checkpoint_seconds": checkpoint,
        "restart_seconds": restart,
        "config": with_interval(min(checkpoint_every, steps)),
        "young": with_interval(in_steps(young_interval(checkpoint, mtbf))),
        "daly": with_interval(in_steps(daly_interval(checkpoint, mtbf))),
    }
