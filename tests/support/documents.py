"""What the project's pages hold: blocks of code, command lines, links and anchors."""

import dataclasses
import pathlib
import re

from tests.support.runs import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PROGRAM = (
    r"(?:\.venv/bin/)?"
    r"(?:python3? -m (?:vit_jax\.main|pytest)|vit-jax|pytest|python3? benchmarks/\S+\.py)"
)
# A shell's end of a command, and the end of a quoted one.
COMMAND = re.compile(rf'(?<![\w/-])({PROGRAM}(?: .*?)?)(?= && | ?; | \| | &$|"$|$)')


@dataclasses.dataclass(frozen=True)
class Block:
    """Fenced lines of a language, and the line of the page that they begin in."""

    language: str
    text: str
    line: int


def name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: pathlib.Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2], found[3], text.count("\n", 0, found.start(3)) + 1)
        for found in FENCE.finditer(text)
    ]


def prose(page: pathlib.Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: pathlib.Path) -> list[str]:
    """Inline code, of tables too, and what a paragraph breaks over two lines."""
    text = re.sub(r"(?<=[^|\n])\n(?=[^|\n#])", " ", prose(page))
    return [found.replace("\\|", "|") for found in re.findall(r"`([^`\n]+)`", text)]


def commands(page: pathlib.Path) -> list[str]:
    """Command lines of this project, in the order of the page: of blocks, then of inline code."""
    scripts = [block.text for block in blocks(page) if block.language == "bash"]
    found = shell("\n".join(scripts))
    found += [span for span in spans(page) if re.match(f"{PROGRAM} ", span)]
    return list(dict.fromkeys(line.removeprefix(".venv/bin/") for line in found))


def shell(script: str) -> list[str]:
    """The commands of a script, its variables put in."""
    text = re.sub(r"\s*\\\n\s*", " ", script)
    variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
    lines = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s+)#.*", "", line)
        for key, value in variables.items():
            line = line.replace(f"${key}", value)
        line = line.replace("$i", "0")  # Of a loop.
        lines += [found[1].strip() for found in COMMAND.finditer(line)]
    return lines


def links(page: pathlib.Path) -> list[str]:
    """Targets of links and images, but for those of other sites."""
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in found if not re.match(r"https?:", target)]


def anchors(page: pathlib.Path) -> set[str]:
    """What a link may name after `#`: headings as GitHub names them, and documented objects."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    slugs = {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in words}
    return slugs | set(re.findall(r"^::: (\S+)$", prose(page), re.MULTILINE))
