"""Pages, read as a browser's parser reads them, and the run whose pages they are."""

import base64
import html.parser
import io
import json
import pathlib
import re

import numpy as np
from PIL import Image

from tests.support.runs import ROOT
from vit_jax import main


class Page(html.parser.HTMLParser):
    """The tags of a page, its words, and the numbers of its plots."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.text = path.read_text()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.plots: list[dict] = []
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if attributes.get("type") == "application/json":
            self.plots.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(self.words)

    @property
    def sections(self) -> set[str]:
        return {attributes["id"] for tag, attributes in self.tags if tag == "section"}

    def images(self, alt: str | None = None) -> list[np.ndarray]:
        """The pictures, decoded, of a certain `alt` or all."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img" and alt in (None, attributes["alt"]):
                kind, data = re.fullmatch(
                    r"data:image/(\w+);base64,(.*)", attributes["src"]
                ).groups()
                with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                    assert image.format == kind.upper()
                    found.append(np.asarray(image))
        return found

    def charts(self) -> dict[str, dict]:
        """Title -> label -> step -> value of the plots."""
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


def train(folder: pathlib.Path) -> pathlib.Path:
    """The stages of a small quickstart, with the pages that training leaves."""
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
    assert main.run([config, f"--workdir={folder}"]) == 0
    return folder
