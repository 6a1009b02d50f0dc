"""Are wrong commands refused in one line, and does `serve --check` tell the plan on any machine?"""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import commands, service
from deployments.cli import main
from deployments.config import shipped_configs
from deployments.directory import ReplicaRecord
from deployments.service import ServiceAddress
from deployments.tenant import Tenant
from deployments.tenants_file import load_tenants
from llama31.chat import Usage
from llama31.engine import RankReport
from llama31.errors import Llama31Error


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user of a machine without GPUs; `serve` sets signal handlers, which are put back."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(service, "machine_gpus", lambda: 0)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


FREE_PORTS = ("--port", "0", "--http-port", "0", "--metrics-port", "0")
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["serve", "--replicas", "two"], "--replicas: invalid int value: 'two'"),
        (["serve", "--port"], "--port: expected one argument"),
        (["serve", "--engine", "other"], "--engine: invalid choice"),
        (["serve", "--weights", "none"], "--weights: invalid choice"),
        (["serve", "--what"], "unrecognized arguments: --what"),
        (["weights"], "ACTION"),
        (["keys"], "ACTION"),
        (["keys", "new"], "TENANT"),
        (["weights", "check"], "directory"),
        (["chat", "--temperature", "hot"], "invalid float value: 'hot'"),
        (["serve", "--http-port", "closed"], "--http-port: invalid"),
        (["status", "--port", "x"], "invalid int value: 'x'"),
    ],
)
def test_what_cannot_be_parsed(arguments: list[str], words: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["chat", "--help"], ["weights", "--help"]])
def test_help(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "usage: llama31" in capsys.readouterr().out


def refusal(arguments: list[str], capsys: Captured) -> str:
    """What a command that fails says on standard error."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("llama31: ")
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--check", "--config", "nowhere.yaml"], "give a file or one of: 405b-bf16, 405b-fp8, 70b, 8b"),
        (["serve", "--check", "--plan", "tp5"], "Plans that work: tp 1, 2, 4, 12, each with pp 1 to 30"),
        (["serve", "--check", "--plan", "five"], "plan 'five' is not understood"),
        (["serve", "--check", "--config", "8b", "--plan", "tp64"], "32 query heads do not divide by 64"),
        (["serve", "--check", "--replicas", "0"], "replicas: Input should be greater than or equal to 1"),
        (["serve", "--check", "--port", "65536"], "ingress.port: Input should be less than or equal to 65535"),
        (["serve", "--check", "--http-port", "65536"], "ingress.http_port"),
        (["serve", "--check", "--metrics-port", "-1"], "ingress.metrics_port"),
        (["demo", "--plan", "tp3"], "cannot be split as tp3"),
        (["weights", "check", "/nowhere"], "/nowhere"),
        (["status"], "no service of yours runs"),
        (["status", "--port", "9123"], "no service of yours runs on port 9123"),
        (["chat", "hello"], "no service of yours runs"),
    ],
)
def test_errors_are_words(arguments: list[str], words: str, capsys: Captured) -> None:
    assert words in refusal(arguments, capsys)


CHECKED = {
    "8b": ("llama-3.1-8b: 8,030,261,248 parameters", "tp1:", "1 x 1 GPUs"),
    "70b": ("llama-3.1-70b: 70,553,706,496 parameters", "tp4:", "1 x 4 GPUs"),
    "405b-fp8": ("llama-3.1-405b-fp8: 405,853,388,800 parameters", "tp8:", "1 x 8 GPUs"),
    "405b-bf16": ("llama-3.1-405b: 405,853,388,800 parameters", "tp8pp2:", "2 x 8 GPUs"),
    "standin": ("smollm2-135m: 143,362,368 parameters", "tp2:", "the present cluster can hold it"),
}


def test_every_shipped_config_is_checked_here() -> None:
    assert set(CHECKED) == set(shipped_configs())


@pytest.mark.parametrize("name", CHECKED)
def test_check_tells_the_plan_and_what_is_missing(name: str, capsys: Captured) -> None:
    fits = name == "standin"
    assert main(["serve", "--config", name, "--check"]) == (0 if fits else 1)
    output, error = capsys.readouterr()
    model, plan, cluster = CHECKED[name]
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    told = {head: rest for head, rest in lines if head != "stage"}
    assert list(told) == ["model", "plan", "replicas", "KV", "context", "cluster"]
    assert told["model"].startswith(model)
    assert told["plan"].startswith(plan)
    assert cluster in told["cluster"]
    if not fits:
        assert "0 of 0 GPUs free" in told["cluster"]
        assert "What would help: add nodes" in told["cluster"]
    assert error == ""


def test_check_takes_the_options(capsys: Captured) -> None:
    assert main(["serve", "--check", "--plan", "tp2pp2", "--replicas", "2"]) == 1
    output = capsys.readouterr().out
    assert "tp2pp2: tensor parallel 2 x pipeline parallel 2 = 4 ranks" in output
    assert "replica 2 of 2 does not fit" in output


def test_serve_refuses_with_the_words_of_check(capsys: Captured) -> None:
    main(["serve", "--config", "405b-bf16", "--check"])
    (cluster,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("cluster"))
    error = refusal(["serve", "--config", "405b-bf16", *FREE_PORTS], capsys)
    assert error == f"llama31: {cluster.split(maxsplit=1)[1]}\n"


def test_serve_refuses_what_no_gpu_could_hold(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: llama-3.1-405b\nplan: tp8\n")
    assert "a rank needs 94.5 GiB for weights" in refusal(["serve", "--config", str(file)], capsys)
    assert main(["serve", "--config", str(file), "--check"]) == 1
    assert "refused    a rank needs 94.5 GiB for weights" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--port", "--http-port", "--metrics-port"])
def test_a_port_in_use_is_named_with_its_option(option: str, capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # The last of two equal options holds.
        arguments = ["serve", "--weights", "dummy", *FREE_PORTS, option, str(port)]
        error = refusal(arguments, capsys)
    expected = f"127.0.0.1:{port} is in use; stop that process or choose another port with {option}"
    assert error == f"llama31: {expected}\n"


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1)])
def test_a_user_who_leaves_sees_no_traceback(
    stop: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def leave(_: int | None = None) -> ServiceAddress:
        raise stop

    monkeypatch.setattr(commands, "running_service", leave)
    assert main(["status"]) == code
    assert capsys.readouterr().err == ""


RANKS = tuple(
    RankReport(r, r // 2, r % 2, f"node-{r // 2}-of-two", f"10.0.0.{r // 2}", 40 + r, "cpu") for r in range(4)
)


def test_the_table_shows_every_rank_with_its_node() -> None:
    assert list(commands.rank_table(())) == ["no replica has announced itself yet"]
    ready = ReplicaRecord("replica-1", 1, "model", "tp2pp2", "ready", pid=7, ranks=RANKS)
    loading = ReplicaRecord("replica-2", 1, "model", "tp2pp2", "loading", "rank 1 of 4 has its weights", pid=8)
    load = {"replica-1": {"running": 3.0, "waiting": 1.0, "kv_used_tokens": 1234.0, "kv_total_tokens": 8738.0}}
    first, *ranks, second = commands.rank_table((ready, loading), load)
    assert first == ("replica replica-1  model  tp2pp2  pid 7  ready  running 3  waiting 1  KV 1,234 of 8,738 tokens")
    assert ranks[0] == "  rank 0  stage 0  tp 0  node node-0-o (10.0.0.0)  cpu  pid 40"
    assert ranks[3] == "  rank 3  stage 1  tp 1  node node-1-o (10.0.0.1)  cpu  pid 43"
    assert second == "replica replica-2  model  tp2pp2  pid 8  loading rank 1 of 4 has its weights"


def test_clients_to_copy_name_the_address() -> None:
    address = ServiceAddress(1, "smollm2-135m", "127.0.0.1:9000", "", "http://127.0.0.1:8265", "", "secret")
    text = commands.how_to_connect(address)
    assert text.count("127.0.0.1:9000") == 4
    assert "HTTP       off" in text
    assert "curl" not in text.replace("grpcurl", "")
    web = commands.how_to_connect(dataclasses.replace(address, http="http://127.0.0.1:8000"))
    assert "curl -N http://127.0.0.1:8000/v1/chat/completions" in web
    assert "HTTP       http://127.0.0.1:8000" in web
    for part in ("grpcurl -plaintext", '"model": "smollm2-135m"', "llama31 chat --address", "metrics    off", "secret"):
        assert part in text


def test_figures_of_an_answer() -> None:
    usage = Usage(10, 0, 21, 0.0, 0.1, 0.5, 2.5)
    assert commands._figures(usage) == "[10 prompt + 21 output tokens, TTFT 0.50 s, 10.0 tokens/s]"
    for tokens in (0, 1):
        assert "0.0 tokens/s" in commands._figures(Usage(10, 0, tokens, 0.0, 0.0, 0.5, 0.5))


def test_chat_settings_become_options() -> None:
    options = commands.ChatSettings("be brief", 0.0, 5, 7).options()
    assert (options.sampling.temperature, options.sampling.seed, options.stop.max_output_tokens) == (0.0, 7, 5)
    assert commands.ChatSettings().first_messages() == []
    assert [m.content for m in commands.ChatSettings("be brief").first_messages()] == ["be brief"]


def test_the_error_root_is_what_main_catches(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fail(_: int | None = None) -> ServiceAddress:
        raise Llama31Error("two words")

    monkeypatch.setattr(commands, "running_service", fail)
    assert refusal(["status"], capsys) == "llama31: two words\n"


def test_a_new_key_opens_what_its_lines_say(tmp_path: Path, capsys: Captured) -> None:
    assert main(["keys", "new", "acme", "--days", "90"]) == 0
    key, _, told, _, *lines = capsys.readouterr().out.splitlines()
    assert "this once" in told
    assert key not in "\n".join(lines)
    file = tmp_path / "tenants.yaml"
    file.write_text("\n".join(lines))
    ring, now_s = load_tenants(str(file)), time.time()
    assert ring.find(key, now_s) == Tenant("acme")
    assert ring.find(key, now_s + 89 * 86_400) is not None
    assert ring.find(key, now_s + 91 * 86_400) is None


def test_a_key_for_no_name(capsys: Captured) -> None:
    assert "'A b' is no tenant name" in refusal(["keys", "new", "A b"], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "set ingress.auth.tenants_file, or ingress.serve_without_keys"),
        (["--host", "0.0.0.0", "--serve-without-keys"], "set ingress.tls, or ingress.serve_without_tls"),
        (["--tls-cert", "cert.pem"], "ingress.tls.key_file"),
        (["--tenants", "/nowhere/tenants.yaml"], "/nowhere/tenants.yaml: No such file"),
        (["--tls-cert", "/nowhere/c.pem", "--tls-key", "/nowhere/k.pem"], "/nowhere/c.pem"),
    ],
)
def test_an_unsafe_door_is_not_opened(arguments: list[str], words: str, capsys: Captured) -> None:
    assert words in refusal(["serve", "--weights", "dummy", "--port", "0", "--metrics-port", "0", *arguments], capsys)


def test_the_key_comes_from_a_file(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "key"
    asked = ["chat", "--address", "192.0.2.1:9000", "--api-key-file", str(file), "Hi"]
    assert f"{file}: No such file" in refusal(asked, capsys)
    file.write_text("l31_key\n")
    assert "the API key would go to 192.0.2.1:9000 in plaintext" in refusal(asked, capsys)
    assert "/nowhere/ca.pem: No such file" in refusal([*asked, "--ca-file", "/nowhere/ca.pem"], capsys)
    file.write_bytes(b"\xff\xfe")
    assert "holds no API key" in refusal(asked, capsys)


def test_clients_to_copy_bring_key_and_authority() -> None:
    address = ServiceAddress(1, "m", "127.0.0.1:9000", "", "", "", "", tls=True, asks_for_key=True)
    text = commands.how_to_connect(address)
    for part in ('-H "authorization: Bearer $KEY"', "-cacert CA.pem", "--api-key-file KEY.txt", 'tls=Tls("CA.pem")'):
        assert part in text
    assert "-plaintext" not in text
