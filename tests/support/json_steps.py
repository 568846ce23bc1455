"""Step folders without arrays: the JSON items of a checkpoint, with their checksums."""

import json
import pathlib

from vit_jax.checkpoints import layout


def write_step(
    folder: pathlib.Path, step: int, *, data: dict | None = None, leaves: dict | None = None, **meta
) -> pathlib.Path:
    """Writes the items `data`, `meta` and `manifest` of a step; returns its folder."""
    items = {"data": data or {}, "meta": meta}
    manifest = layout.make_manifest(step, leaves or {}, items)
    for name, item in {**items, "manifest": manifest}.items():
        path = folder / str(step) / name / "metadata"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(item))
    return folder / str(step)


def rewrite_item(step_folder: pathlib.Path, name: str, item: dict) -> None:
    """Replaces an item of a step, and its checksum in the manifest."""
    manifest = layout.read_manifest(step_folder)
    manifest["items"][name] = layout.crc_of_json(item)
    write_manifest(step_folder, manifest)
    (step_folder / name / "metadata").write_text(json.dumps(item))


def write_manifest(step_folder: pathlib.Path, manifest: dict) -> None:
    """Replaces the manifest of a step, with its checksum."""
    body = {name: part for name, part in manifest.items() if name != "crc32c"}
    body["crc32c"] = layout.crc_of_json(body)
    (step_folder / "manifest" / "metadata").write_text(json.dumps(body))
