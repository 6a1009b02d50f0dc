"""How does the documentation get its picture of the status page? From a served one, in the tests' own browser."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.conformance.environments import NotToBeHad, browser_command

QUESTION = "What is the capital of France?"


def main() -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.screenshot", description=__doc__)
    parser.add_argument("url", help="a page, such as http://127.0.0.1:8000/")
    parser.add_argument("file", type=Path, help="the picture to write, .png")
    parser.add_argument("--question", default=QUESTION, help="asked in the chat box; empty for none")
    parser.add_argument("--scheme", default="light", choices=("light", "dark"))
    parser.add_argument("--width", type=int, default=1100, metavar="PIXELS")
    arguments = parser.parse_args()
    job = {**vars(arguments), "file": str(arguments.file.resolve())}
    try:
        return subprocess.run([*browser_command("screenshot.cjs"), json.dumps(job)], check=False).returncode
    except NotToBeHad as cause:
        print(f"Chromium cannot be had: {cause}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
