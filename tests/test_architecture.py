"""Do the layers, the purity rules and the sizes hold that the architecture page promises?"""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llama31 import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("llama31", "cluster", "deployments")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "base", "misc", "types"}

# Package -> our packages that it may not import.
FORBIDDEN_LAYERS = {"llama31": {"cluster", "deployments"}, "cluster": {"deployments"}, "deployments": set()}

# Files that decide: no clock, no dice, no I/O, no log.
PURE_FILES = (
    "cluster/policy.py",
    "cluster/fading_sum.py",
    "cluster/energy.py",
    "cluster/placement.py",
    "cluster/layouts.py",
    "cluster/steady.py",
    "cluster/planner.py",
    "cluster/topology.py",
    "deployments/policies/*.py",
)
IMPURE_STDLIB = {"time", "random", "os", "socket", "logging", "asyncio", "threading", "subprocess"}
_PURE_CLUSTER_NAMES = ("policy", "placement", "topology", "hardware", "layouts", "steady", "throughput")
PURE_CLUSTER = {"cluster." + name for name in _PURE_CLUSTER_NAMES}
_PURE_NAMES = ("errors", "specs", "parallel", "memory", "chat", "engine", "prefix_blocks", "block_table")
PURE_LLAMA31 = {"llama31." + name for name in _PURE_NAMES}

# Third-party module -> the only files of our packages that may import it.
CONFINED = {
    "vllm": ("llama31/vllm_*.py",),
    "torch": ("llama31/vllm_*.py", "llama31/meta_layout.py"),
    "gguf": ("llama31/standin.py",),
    "tokenizers": ("llama31/tokenizer.py",),
    "tiktoken": ("llama31/tokenizer.py",),
    "py3langid": ("deployments/language.py",),
    "yaml": ("deployments/config.py",),
    "opentelemetry": ("deployments/tracing.py",),
    "grafana_foundation_sdk": ("deployments/observe/grafana.py",),
}
WIRE_MODULES = (
    "google",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "llama31.v1",
    "llama31.worker",
    "llama31.oip",
)
WIRE_FILES = (
    "deployments/ingress/*.py",
    "deployments/worker_*.py",
    "deployments/engine_server.py",
    "deployments/replica_link.py",
    "deployments/client.py",
    "deployments/client_wire.py",
    "deployments/constraint_codec.py",
    "deployments/resource_codec.py",
)
ENVIRONMENT_FILES = ("deployments/config.py", "llama31/vllm_*.py", "cluster/local.py")


def is_generated(path: Path) -> bool:
    return bool(re.search(r"_pb2(_grpc)?\.py$", path.name))


def source_files() -> list[str]:
    """Our own modules as paths from the root."""
    return [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not is_generated(path)
    ]


SOURCES = source_files()


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=file)


def matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(Path(file).match(pattern) for pattern in patterns)


def imports(module: ast.Module) -> Iterator[str]:
    """Each imported module, with the imported names: `from a import b` gives "a.b"."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("file", SOURCES)
def test_imports_go_one_way(file: str) -> None:
    package = file.partition("/")[0]
    wrong = {name for name in imports(tree(file)) if name.partition(".")[0] in FORBIDDEN_LAYERS[package]}
    assert not wrong, f"{package}/ must not import {sorted(wrong)}"


def test_tests_are_not_imported() -> None:
    wrong = [f for f in SOURCES for name in imports(tree(f)) if name.partition(".")[0] in {"tests", "bench"}]
    assert not wrong


@pytest.mark.parametrize("file", [file for file in SOURCES if matches(file, PURE_FILES)])
def test_deciding_files_are_pure(file: str) -> None:
    allowed_ours = PURE_CLUSTER | PURE_LLAMA31 | {"deployments.policies"}
    for name in imports(tree(file)):
        top = name.partition(".")[0]
        if top in PACKAGES:
            assert any(is_within(name, module) for module in allowed_ours), f"{name} is not pure"
        else:
            assert top in sys.stdlib_module_names | {"__future__"}, f"{name} is not in the standard library"
            assert top not in IMPURE_STDLIB, f"{name} is a clock, dice, I/O or a log"
    calls = {node.func.id for node in ast.walk(tree(file)) if is_plain_call(node)}
    assert not calls & {"open", "print", "input"}


def is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("file", [f"llama31/{name.partition('.')[2]}.py" for name in sorted(PURE_LLAMA31)])
def test_what_deciding_files_import_is_pure_too(file: str) -> None:
    for name in imports(tree(file)):
        top = name.partition(".")[0]
        assert top in sys.stdlib_module_names or any(is_within(name, module) for module in PURE_LLAMA31)
        assert top not in IMPURE_STDLIB


@pytest.mark.parametrize("file", SOURCES)
def test_libraries_stay_where_they_belong(file: str) -> None:
    for name in imports(tree(file)):
        for module, files in CONFINED.items():
            if is_within(name, module):
                assert matches(file, files), f"{module} may be imported in {', '.join(files)} only"
        if any(is_within(name, module) for module in WIRE_MODULES):
            assert matches(file, WIRE_FILES), f"{name}: the wire format stops at the codec files"


@pytest.mark.parametrize("file", SOURCES)
def test_environment_is_read_in_few_files(file: str) -> None:
    if matches(file, ENVIRONMENT_FILES):
        return
    # Setting variables for a child process, os.environ["X"] = ... or os.environ |= ..., is no read.
    written = {
        id(node.value)
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}:
            assert isinstance(node.ctx, ast.Store) or id(node) in written, f"line {node.lineno} reads the environment"
    assert not {"os.environ", "os.getenv"} & set(imports(tree(file)))


@pytest.mark.parametrize("file", SOURCES)
def test_files_and_functions_are_small(file: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{lines} lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("file", SOURCES)
def test_names_say_something(file: str) -> None:
    parts = {Path(part).stem for part in Path(file).parts}
    assert not parts & FORBIDDEN_NAMES


@pytest.mark.parametrize("file", [f for f in SOURCES if not f.endswith("__init__.py")])
def test_each_file_says_which_question_it_answers(file: str) -> None:
    docstring = ast.get_docstring(tree(file))
    assert docstring
    assert len(docstring.splitlines()[0]) <= 120


ERRORS = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, errors.Llama31Error)]


def test_reason_slugs_are_stable_names() -> None:
    """A class has a slug of its own or its parent's; no two classes chose the same one."""
    own: dict[str, str] = {}
    for error in ERRORS:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", error.reason)
        if "reason" in vars(error) and error is not errors.Llama31Error:
            taken_by = own.setdefault(error.reason, error.__name__)
            assert taken_by == error.__name__, f"{error.reason} is used by {taken_by} and {error.__name__}"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_survive_pickling(error: type[errors.Llama31Error]) -> None:
    samples = {"int": 7, "float": 2.5, "str": "text", "tuple[str, ...]": ("a", "b")}
    own_init = inspect.get_annotations(error.__init__) if inspect.isfunction(error.__init__) else {}
    annotations = [kind for name, kind in own_init.items() if name != "return"]
    original = error(*(samples[kind] for kind in annotations or ["str"]))
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert (copy.args, vars(copy), str(copy)) == (original.args, vars(original), str(original))
