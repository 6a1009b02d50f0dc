"""What do the documents say that can be tried? Code blocks and links of Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)")


def blocks(document: Path, language: str) -> Iterator[str]:
    """The code blocks of one language."""
    return (text for name, text in _BLOCK.findall(document.read_text()) if name == language)


def local_links(document: Path) -> Iterator[Path]:
    """Files of this repository that the document points to."""
    targets = _LINK.findall(document.read_text())
    return (document.parent / target for target in targets if "://" not in target)
