"""Outputs of models that are not finite, traced to the weights."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from vit_jax.errors import CheckpointError, NonFiniteError
from vit_jax.models import trees

REASON = "the weights are damaged, or the training run diverged"


def require_finite_params(params, where: str | None) -> None:
    """Raises an error that names the first array with NaN or infinity, as `require_finite`."""
    for name, array in trees.flatten(params).items():
        isfinite = np.isfinite if isinstance(array, np.ndarray) else jnp.isfinite
        if not isfinite(array).all():
            raise _error(where, f"{name} contains values that are not finite; {REASON}.")


def require_finite(outputs: Mapping[object, np.ndarray], params, where: str | None) -> None:
    """Raises an error if an output has NaN or infinity.

    It names the first array of the weights that is not finite, or the output if all are.

    Args:
      outputs: arrays that have left the devices, by name; integers are accepted.
      params: parameters of the model.
      where: location of the weights: the error is a CheckpointError. None for the weights of a
        run in training: it is a NonFiniteError.
    """
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            require_finite_params(params, where)
            raise _error(
                where, f"the output {name} is not finite, although all weights are finite."
            )


def _error(where: str | None, problem: str) -> CheckpointError | NonFiniteError:
    if where is None:
        return NonFiniteError(f"evaluation: {problem}")
    return CheckpointError(f"{where}: {problem}")
