"""What a checkpoint holds, read from its manifest without loading an array."""

import json
import math

from vit_jax.checkpoints import checkpoint
from vit_jax.weights import load
from vit_jax.weights.archive import open_archive


def inspect(where: str, as_json: bool = False) -> str:
    """A table of the arrays behind WHERE, and for our own checkpoints step and config."""
    path, _ = load.locate(where)
    is_foreign = load.is_foreign(path)
    if is_foreign:
        archive = open_archive(path / "model.safetensors" if path.is_dir() else path)
        leaves = {
            name: {"shape": list(entry.shape), "dtype": entry.dtype}
            for name, entry in archive.entries.items()
        }
        facts = {**archive.metadata, "file": str(archive.path)}
    else:
        leaves = checkpoint.read_manifest(path)["leaves"]
        data, meta = (checkpoint.read_item(path, name) for name in ("data", "meta"))
        facts = {"checkpoint": str(path), "step": int(path.name), "data": data, **meta}
    facts["parameters"] = sum(
        math.prod(leaf["shape"]) for name, leaf in leaves.items() if _is_param(name, is_foreign)
    )
    if as_json:
        return json.dumps({**facts, "leaves": leaves}, indent=2)
    width = max(map(len, leaves), default=0)
    lines = [
        f"{name:{width}}  {'x'.join(map(str, leaf['shape'])) or 'scalar':>18}  {leaf['dtype']:8}"
        + (f"  {leaf['crc32c']:08x}" if "crc32c" in leaf else "")
        for name, leaf in leaves.items()
    ]
    lines += [f"{_printable(name)}: {_printable(value)}" for name, value in facts.items()]
    return "\n".join(lines)


def _printable(text) -> str:
    """As JSON where it is no plain text: files may hold what a terminal obeys."""
    return text if isinstance(text, str) and text.isprintable() else json.dumps(text)


def _is_param(name: str, is_foreign: bool) -> bool:
    return is_foreign or name.startswith("params/")
