"""Do the committed stubs load, and carry a message, with each protobuf runtime that the client extra allows?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.conformance

STUBS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "llama31").rglob("*_pb2*.py"))
]
PROGRAM = """
import importlib, sys
from google.protobuf import __version__
for name in sys.argv[1:]:
    importlib.import_module(name)
from llama31.v1 import chat_service_pb2 as pb
request = pb.ChatRequest()
request.spec.messages.add(role=pb.ROLE_USER).parts.add(text="Gr\\u00fc\\u00dfe")
assert pb.ChatRequest.FromString(request.SerializeToString()) == request
print(__version__)
"""


@pytest.mark.parametrize(("wanted", "begins"), [("protobuf==6.33.5", "6.33.5"), ("protobuf>=7,<8", "7.")])
def test_stubs_load(wanted: str, begins: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    installed = subprocess.run([*pip, "--target", str(tmp_path), wanted], capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"{wanted} cannot be had here: {installed.stderr.strip().splitlines()[-1]}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *STUBS],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(begins)
