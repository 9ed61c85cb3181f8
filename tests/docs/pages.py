"""The pages of the documentation, their code blocks and their tables."""

import pathlib
import re
import shlex
from typing import NamedTuple

import runs

DOCS = runs.ROOT / "docs"
NOT_RUN = "<!-- not run:"
_BLOCK = re.compile(r"^([ ]*)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code.

    Attributes:
        place: File and line, for messages.
        language: 'python', 'sh', ...
        code: Without the indentation of the fence.
        marked: Whether it is only to be parsed.
    """

    place: str
    language: str
    code: str
    marked: bool


def pages() -> list[pathlib.Path]:
    found = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    return [runs.ROOT / "README.md", *sorted(found)]


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(runs.ROOT))


def blocks(path: pathlib.Path, language: str) -> list[Block]:
    text, found = path.read_text(), []
    for match in _BLOCK.finditer(text):
        if match[2] == language:
            before = text[: match.start()]
            line = before.count("\n") + 2
            code = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
            last = before.rstrip().rpartition("\n")[2]
            place = f"{name_of(path)}:{line}"
            found.append(Block(place, language, code, last.startswith(NOT_RUN)))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block: lines that go on after a backslash or in quotes are joined."""
    found, text = [], ""
    for line in re.sub(r"\\\n\s*", " ", block.code).splitlines():
        text = f"{text} {line.strip()}".strip()
        try:
            shlex.split(text, comments=True)
        except ValueError:  # a quotation that is open
            continue
        found += [text] if text else []
        text = ""
    assert not text, f"{block.place}: {text}"
    return found


def tables(path: pathlib.Path) -> list[list[list[str]]]:
    """Every table of a page as rows of cells, the head first."""
    found, rows = [], []
    for line in [*path.read_text().splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            found.append([row for row in rows if set("".join(row)) - set("-: ")])
            rows = []
    return found
