"""What a page tells people to type: its fenced blocks, its inline code, and the commands in them.

`shell` blocks are commands alone; in `console` blocks they stand behind `$ `, and the rest is what they print.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docker/README.md")), *ROOT.glob("docs/pages/**/*.md")]
)
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_BETWEEN = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is where it begins."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """Return every fenced block of every page."""
    found = []
    for file in PAGES:
        text = file.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            inner = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(file.relative_to(ROOT).as_posix(), line, match["language"], inner))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a `shell` or `console` block, without comments and redirections."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        yield from words_of(line)


def words_of(line: str) -> Iterator[list[str]]:
    """Yield the words of each command in a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    command: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _BETWEEN:
            command.append(word)
        elif command:
            yield command
            command = []


def inline_code() -> Iterator[tuple[str, str]]:
    """Yield the page and the text of every piece of inline code outside fenced blocks."""
    for file in PAGES:
        for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", file.read_text(encoding="utf-8"))):
            yield file.relative_to(ROOT).as_posix(), span
