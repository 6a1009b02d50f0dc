"""What does `llama31 plan` answer to the questions of docs/capacity.md? `python -m bench.capacity [--save]`.

Runs every command of the page; `--save` writes the answers behind them and the plots beside the page. The last line
is a JSON object of the best plans.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from deployments.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
_BLOCK = re.compile(r"```console\n\$ llama31 (plan [^\n]*)\n(.*?)```", re.DOTALL)
_PLOT = re.compile(r"\n\n!\[[^\]]*\]\((capacity-[^)]*)\.svg\)")
MOST_LINES = 24


def questions(text: str) -> Iterator[tuple[str, str, str]]:
    """Of each block: its command, the answer that stands there, and the name of the plot after it, if any."""
    for block in _BLOCK.finditer(text):
        plot = _PLOT.match(text, block.end())
        yield block[1], block[2], plot[1] if plot else ""


def answer(command: str, *more: str) -> str:
    """What the command prints, the first lines of it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*shlex.split(command), *more])
    lines = out.getvalue().splitlines()
    return "".join(f"{line}\n" for line in lines[:MOST_LINES])


def _run(save: bool) -> dict[str, list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    best = {}
    for command, _, plot in list(questions(text)):
        options = ("--plot", str(PAGE.with_name(plot))) if plot and save else ()
        said = answer(command, *options)
        if plot and save:
            PAGE.with_name(f"{plot}.png").unlink()
        best[command] = said.splitlines()[1].split()[:9]
        before = re.compile(re.escape(f"$ llama31 {command}\n") + r".*?```", re.DOTALL)
        text = before.sub(lambda _, c=command, s=said: f"$ llama31 {c}\n{s}```", text, count=1)
    if save:
        PAGE.write_text(text, encoding="utf-8")
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--save", action="store_true", help="write the answers into docs/capacity.md")
    print(json.dumps({"figures": _run(parser.parse_args().save), "targets": {}, "ok": True}))
    sys.exit(0)
