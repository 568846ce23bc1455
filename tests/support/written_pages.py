"""HTML pages as a browser's parser reads them, and the runs that they describe."""

import base64
import html.parser
import io
import json
import pathlib
import re
import shutil

import numpy as np
from PIL import Image

from tests.support.runs import ROOT
from vit_jax import main

ALWAYS = {"reproduce", "curves", "inputs", "goodput", "parameters", "config", "environment"}
WITH_MODEL = {"predictions", "attention", "position-embeddings"}


class Page(html.parser.HTMLParser):
    """A parsed page.

    Attributes:
      html: the file's text.
      tags: (tag, attributes) of all elements.
      texts: visible texts.
      plots: data of the plots.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.html = path.read_text()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.plots: list[dict] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if attributes.get("type") == "application/json":
            self.plots.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """The visible text."""
        return " ".join(self.texts)

    @property
    def sections(self) -> set[str]:
        """The ids of the sections."""
        return {attributes["id"] for tag, attributes in self.tags if tag == "section"}

    @property
    def links(self) -> list[str]:
        """The targets of the links."""
        return [attributes["href"] for tag, attributes in self.tags if tag == "a"]

    def images(self, alt: str | None = None) -> list[np.ndarray]:
        """Returns the pixels of all images, or of those with a certain `alt` text."""
        images = []
        for tag, attributes in self.tags:
            if tag == "img" and alt in (None, attributes["alt"]):
                match = re.fullmatch(r"data:image/(\w+);base64,(.*)", attributes["src"])
                with Image.open(io.BytesIO(base64.b64decode(match[2]))) as image:
                    assert image.format == match[1].upper()
                    images.append(np.asarray(image))
        return images

    def charts(self) -> dict[str, dict]:
        """Returns title -> label -> step -> value of the plots."""
        return {
            chart["title"]: {
                series["label"]: {
                    step: value
                    for step, value in zip(chart["steps"], series["values"], strict=True)
                    if value is not None
                }
                for series in chart["series"]
            }
            for block in self.plots
            for chart in block["charts"]
        }


def train_quickstart(folder: pathlib.Path) -> pathlib.Path:
    """Trains the stages of the smoke-test quickstart."""
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
    assert main.run([config, f"--workdir={folder}"]) == 0
    return folder


def copy_as_killed(
    run: pathlib.Path, folder: pathlib.Path, *, keep_checkpoints: bool = True
) -> pathlib.Path:
    """Copies a run as if it had been killed while writing a line of `metrics.jsonl`."""
    shutil.copytree(run, folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    if not keep_checkpoints:
        shutil.rmtree(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    return folder


def change_config(folder: pathlib.Path, section: str, **fields) -> None:
    """Changes fields of a section in a run's `config.json`, and removes its checkpoints.

    The config inside a checkpoint precedes that of the file.
    """
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config).update(fields)
    (folder / "config.json").write_text(json.dumps(config))


WITHOUT_LABELS = """
from vit_jax.config import base_config


def get_config(arg):
    config = base_config()
    config.model.update(name="vit_ti16", patch=7, num_layers=2, hidden_size=32, mlp_size=64)
    config.model.num_heads = 2
    config.data.update(source="digits", image_size=28, augment="random_resized_crop(0.4)")
    config.task.name = arg
    if arg == "mae":
        config.task.update(decoder_layers=1, decoder_size=32, decoder_heads=2)
    else:
        config.task.update(prototypes=64, head_hidden=64, bottleneck=16, patch_weight=1.0)
        config.task.koleo_weight = 0.1
        config.data.update(local_crops=2, local_size=14, local_augment="random_resized_crop(0.2)")
    config.optimizer.update(lr=3e-3, warmup_steps=5, ema=0.9)
    config.probe.update(every=10, count=300)
    config.update(batch_size=64, steps=60, log_every=2, checkpoint_every=60, eval_every=20)
    return config
"""


def train_without_labels(folder: pathlib.Path, task: str) -> None:
    """Trains a tiny model without labels, with probes, and writes the page with its model."""
    config = folder.with_suffix(".py")
    config.write_text(WITHOUT_LABELS)
    assert main.run([f"--config={config}:{task}", f"--workdir={folder}"]) == 0
    assert main.run(["report", str(folder)]) == 0
