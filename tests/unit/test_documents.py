"""Are the commands and links of the documents real? The README's client runs in tests/cli, docs/api.md on its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deployments.cli import build_parser
from deployments.config import shipped_configs
from tests.documents import DOCUMENTS, ROOT, blocks, headings, local_links

# Every line of this one is run.
RUN_ELSEWHERE = ROOT / "docs" / "api.md"
COMMANDS = [
    pytest.param(line, id=line[:60])
    for document in DOCUMENTS
    if document != RUN_ELSEWHERE
    for block in blocks(document, "bash")
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
    elif Path(program).name == "llama31":
        assert build_parser().parse_args(arguments)
    else:
        assert program in {"grpcurl", "curl"}, "a command that no test knows"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, heading in local_links(document):
        assert target.exists(), f"{document.name} points to {target}"
        assert not heading or heading in headings(target), f"{document.name} points to {target.name}#{heading}"


def test_the_readme_lists_every_shipped_configuration() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in shipped_configs())


def test_the_readme_is_five_screens_at_most() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 5 * 40
