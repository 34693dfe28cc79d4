"""What the page on architecture takes from the code: who may import whom, and a line on every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARROWS, EVERY_FILE = (
    "<!-- arrows: filled in when the site is built -->",
    "<!-- every file: filled in when the site is built -->",
)
"""Where the page's Markdown has them put in."""


def fill_in(markdown: str) -> str:
    """Return the page with both lists in their places."""
    return markdown.replace(ARROWS, arrows_table()).replace(EVERY_FILE, every_file())


def arrows_table() -> str:
    """Return each room of the package and what it may import from, as `tests/test_rooms.py` has it."""
    lines = ["| room | may import from |", "|---|---|"]
    for room, below in allowed_arrows().items():
        lines.append(f"| `{room}/` | {', '.join(f'`{name}/`' for name in below) or 'no other room'} |")
    return "\n".join(lines)


def allowed_arrows() -> dict[str, tuple[str, ...]]:
    """Return the table `BELOW` of the import test, without importing the test."""
    tree = ast.parse((ROOT / "tests" / "test_rooms.py").read_text(encoding="utf-8"))
    wanted = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("LEAVES", "BELOW")
    ]
    names: dict[str, dict[str, tuple[str, ...]]] = {}
    exec(compile(ast.Module(wanted, []), "test_rooms.py", "exec"), names)
    return names["BELOW"]


def every_file() -> str:
    """Return a section for each folder of the package and of jobs/, with a row for each file."""
    parts: list[str] = []
    for folder in sorted({file.parent for file in source_files()}):
        name = folder.relative_to(ROOT).as_posix()
        package = folder / "__init__.py"
        parts += [
            f"### `{name}/`",
            "",
            first_sentence(package) if package.exists() else "",
            "",
            "| file | what it is |",
            "|---|---|",
        ]
        parts += [
            f"| `{file.name}` | {first_sentence(file)} |" for file in sorted(folder.glob("*.py")) if file != package
        ]
        parts.append("")
    return "\n".join(parts)


def source_files() -> Iterator[Path]:
    """Yield every file of the package and of jobs/ that has code."""
    for top in ("eva_dist", "jobs"):
        yield from (file for file in sorted((ROOT / top).rglob("*.py")) if file.name != "__init__.py")


def first_sentence(file: Path) -> str:
    """Return the first paragraph of a module's docstring, as one cell of a table."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("|", "\\|").replace("<", "&lt;")
