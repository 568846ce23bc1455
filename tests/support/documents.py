"""Contents of README and docs: fenced blocks, inline code, commands, links and anchors."""

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
# A command ends at a shell operator, at the end of a quoted string or at the end of the line.
ARGUMENTS = r'(?: (?:[^"]|"[^"]*")*?)?'
COMMAND = re.compile(rf'(?<![\w/-])({PROGRAM}{ARGUMENTS})(?= && | ?; | \| | > | &$|"$|$)')


@dataclasses.dataclass(frozen=True)
class Block:
    """Fenced lines in a language, and the number of their first line in the page."""

    language: str
    text: str
    line: int


def page_name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: pathlib.Path, language: str = "") -> list[Block]:
    """Returns the fenced blocks of a page, or those in one language."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[2], match[3], text.count("\n", 0, match.start(3)) + 1)
        for match in FENCE.finditer(text)
        if match[2] == language or not language
    ]


def file_of(block: Block) -> str | None:
    """Returns the path in the first line of a block that is a file of the reader, or None."""
    match = re.match(r"# (\w+/\w+\.py)\n", block.text)
    return match and match[1]


def write_files(page: pathlib.Path) -> None:
    """Writes the files of a page, and packages around them, into the current folder."""
    for block in blocks(page, "python"):
        if path := file_of(block):
            pathlib.Path(path).parent.mkdir(exist_ok=True)
            (pathlib.Path(path).parent / "__init__.py").touch()
            pathlib.Path(path).write_text(block.text)


def prose(page: pathlib.Path) -> str:
    """Returns the page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: pathlib.Path) -> list[str]:
    """Returns inline code, including code in tables and code broken over two lines."""
    text = re.sub(r"(?<=[^|\n])\n(?=[^|\n#])", " ", prose(page))
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", text)]


def commands(page: pathlib.Path) -> list[str]:
    """Returns the commands of this project: of blocks, in order, then of inline code."""
    lines = shell_commands("\n".join(block.text for block in blocks(page, "bash")))
    lines += [span for span in code_spans(page) if re.match(f"{PROGRAM} ", span)]
    return list(dict.fromkeys(line.removeprefix(".venv/bin/") for line in lines))


def shell_commands(script: str) -> list[str]:
    """Returns the commands of a shell script with its variables substituted."""
    text = re.sub(r"\s*\\\n\s*", " ", script)
    variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
    lines = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s+)#.*", "", line)
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        line = line.replace("$i", "0")  # The variable of a loop.
        lines += [match[1].strip() for match in COMMAND.finditer(line)]
    return lines


def links(page: pathlib.Path) -> list[str]:
    """Returns the targets of links and images, except those on other sites."""
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in targets if not re.match(r"https?:", target)]


def anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors of a page: headings in GitHub's form, and documented objects."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    slugs = {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}
    return slugs | set(api_entries(page))


def api_entries(page: pathlib.Path) -> list[str]:
    """Returns the names of the objects that a page documents."""
    return re.findall(r"^<!-- api: (\S+).* -->$", prose(page), re.MULTILINE)
