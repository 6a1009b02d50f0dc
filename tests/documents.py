"""What do the documents say that can be tried? Code blocks, headings and links of Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
RUNNABLE = ("python", "bash")


@dataclass(frozen=True, slots=True)
class Example:
    """A block that can be run, and the `text` block after it if there is one: what it prints."""

    section: str
    language: str
    code: str
    output: str | None


def blocks(document: Path, language: str) -> Iterator[str]:
    """The code blocks of one language."""
    return (text for name, text in _BLOCK.findall(document.read_text()) if name == language)


def examples(document: Path) -> list[Example]:
    """Every block of Python or bash."""
    text = document.read_text()
    found = list(_BLOCK.finditer(text))
    return [
        Example(
            section=_HEADING.findall(text, 0, block.start())[-1],
            language=block[1],
            code=block[2],
            output=after[2] if after is not None and after[1] == "text" else None,
        )
        for block, after in zip(found, [*found[1:], None], strict=True)
        if block[1] in RUNNABLE
    ]


def table(document: Path, section: str) -> dict[str, str]:
    """The rows of the first table of a section: first column -> second column."""
    text = document.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1] for row in rows[2:]}


def headings(document: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    words = _HEADING.findall(_CODE.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in words}


def local_links(document: Path) -> Iterator[tuple[Path, str]]:
    """Files of this repository that the document points to, each with the heading or ""."""
    for target in _LINK.findall(document.read_text()):
        if "://" not in target:
            file, _, heading = target.partition("#")
            yield (document.parent / file if file else document), heading
