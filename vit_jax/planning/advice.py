"""Largest batch that fits, and changes of a config that make it fit."""

from collections.abc import Iterable, Iterator

from vit_jax.distributed.mesh import num_batch_shards
from vit_jax.models.registry import ViT
from vit_jax.planning.scenario import Scenario

Change = tuple[str, dict]  # Section of the config, or '', and new values of its fields.


def largest_batch(scenario: Scenario) -> int | None:
    """Returns the largest batch size that fits and can be split evenly, or None if none fits."""
    unit = num_batch_shards(scenario.mesh) * scenario.config.accumulate

    def fits(count: int) -> bool:
        return scenario.replace(batch_size=count * unit).fits()

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


def advise(scenario: Scenario) -> tuple[list[str], Scenario]:
    """Returns changes of the config that make it fit, and the changed scenario.

    The kinds of changes are tried in order of increasing cost. Of each kind, the first change
    that is sufficient is taken, or else the last one. Changes between the first and the last that
    turn out to be unnecessary are removed.

    Returns:
      Changes such as "model.dtype=bfloat16", and the scenario with all of them, which may still
      not fit.
    """
    changes: list[Change] = []
    for options_of in (_dtype, _fsdp, _remat, _accumulate, _batch_size, _tensor):
        changed = _apply(scenario, changes)
        if changed.fits():
            break
        options = list(options_of(changed))
        sufficient = (option for option in options if _apply(changed, [option]).fits())
        choice = next(sufficient, options[-1] if options else None)
        changes += [choice] if choice else []
    for change in reversed(changes[1:-1]):
        others = [other for other in changes if other is not change]
        changed = _apply(scenario, others)
        parts = num_batch_shards(changed.mesh) * changed.config.accumulate
        if changed.config.batch_size % parts == 0 and changed.fits():
            changes = others
    assignments = [
        f"{section}.{name}={value}" if section else f"{name}={value}"
        for section, fields in changes
        for name, value in fields.items()
        if value != -1
    ]
    return assignments, _apply(scenario, changes)


def _apply(scenario: Scenario, changes: Iterable[Change]) -> Scenario:
    for section, fields in changes:
        scenario = scenario.replace(section, **fields)
    return scenario


def _dtype(scenario: Scenario) -> Iterator[Change]:
    if scenario.config.model.dtype == "float32":
        yield "model", {"dtype": "bfloat16"}


def _fsdp(scenario: Scenario) -> Iterator[Change]:
    shape = scenario.mesh.shape
    shards = shape["data"] * shape["fsdp"]
    for fsdp in range(shape["fsdp"] + 1, shards + 1):
        if shards % fsdp == 0:
            yield "mesh", {"data": -1, "fsdp": fsdp}


def _remat(scenario: Scenario) -> Iterator[Change]:
    if isinstance(scenario.model, ViT):
        stronger = {"none": ("dots", "full"), "dots": ("full",), "full": ()}
        for remat in stronger[scenario.config.model.remat]:
            yield "model", {"remat": remat}


def _accumulate(scenario: Scenario) -> Iterator[Change]:
    examples = scenario.config.batch_size // num_batch_shards(scenario.mesh)
    accumulate = 2 * scenario.config.accumulate
    while examples % accumulate == 0:
        yield "", {"accumulate": accumulate}
        accumulate *= 2


def _batch_size(scenario: Scenario) -> Iterator[Change]:
    if batch_size := largest_batch(scenario):
        yield "", {"batch_size": batch_size}


def _tensor(scenario: Scenario) -> Iterator[Change]:
    """Yields meshes with fewer batch shards, each split over several devices by `tensor`."""
    if not isinstance(scenario.model, ViT):
        return
    shards, heads = num_batch_shards(scenario.mesh), scenario.model.size.num_heads
    for tensor in range(2, heads + 1):
        if heads % tensor == 0 and shards % tensor == 0:
            yield "mesh", {"data": -1, "fsdp": shards // tensor, "tensor": tensor}
