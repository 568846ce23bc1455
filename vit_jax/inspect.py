"""What a checkpoint holds, read from its manifest without loading an array."""

import json

from vit_jax import checkpoint, load
from vit_jax.interop import npz


def inspect(where: str, as_json: bool = False) -> str:
    """A table of the arrays behind WHERE, and for our own checkpoints step and config."""
    path = load.locate(where)
    if path.is_file():
        leaves = {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in npz.read_npz(path).items()
        }
        facts = {"file": str(path)}
    else:
        leaves = checkpoint.read_manifest(path)["leaves"]
        data, meta = (checkpoint.read_item(path, name) for name in ("data", "meta"))
        facts = {"checkpoint": str(path), "step": int(path.name), "data": data, **meta}
    facts["parameters"] = sum(
        _size(leaf["shape"]) for name, leaf in leaves.items() if _is_param(name, path.is_file())
    )
    if as_json:
        return json.dumps({**facts, "leaves": leaves}, indent=2)
    width = max(map(len, leaves))
    lines = [
        f"{name:{width}}  {'x'.join(map(str, leaf['shape'])) or 'scalar':>18}  {leaf['dtype']:8}"
        + (f"  {leaf['crc32c']:08x}" if "crc32c" in leaf else "")
        for name, leaf in leaves.items()
    ]
    lines += [
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in facts.items()
    ]
    return "\n".join(lines)


def _is_param(name: str, is_npz: bool) -> bool:
    return is_npz or name.startswith("params/")


def _size(shape: list[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
