"""Does `llama31 plan` answer, refuse in words, and write what the real loaders take?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.policy import NodeSnapshot, Topology
from deployments import check
from deployments.cli import main
from deployments.config import load_config, read_yaml
from k8s.chart_files import values_schema
from k8s.chart_values import ChartValues

Captured = pytest.CaptureFixture[str]
ASK_8B = ("plan", "llama-3.1-8b", "--hardware", "1x2xH100", "--input-tokens", "500", "--output-tokens", "100")
ONLINE = (*ASK_8B, "--rate", "4", "--top", "2")


def answered(capsys: Captured, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    tree: dict[str, Any] = json.loads(capsys.readouterr().out)
    return tree


def test_a_table_of_ranked_plans_and_reasons(capsys: Captured) -> None:
    assert main(list(ONLINE)) == 0
    out, err = capsys.readouterr()
    head, first, second, *rest = out.splitlines()
    assert head.split()[:6] == ["#", "model", "weights", "KV", "GPU", "plan"]
    assert [line.split()[0] for line in (first, second)] == ["1", "2"]
    assert "Modelled: " in out
    assert any("any model tp4, " in line and "straddle nodes: there are 1x2xH100-80GB" in line for line in rest)
    assert "ways hold the model and the load" in err


def test_json_holds_every_figure(capsys: Captured) -> None:
    tree = answered(capsys, *ONLINE)
    best = tree["plans"][0]
    assert (best["model"], best["plan"], best["replicas"], best["gpus"]) == ("llama-3.1-8b", "tp1", 1, 1)
    assert best["goodput_per_s"] == pytest.approx(4.0, rel=0.02)
    assert best["output_tokens_per_s"] == pytest.approx(400)
    assert 0 < best["ttft_p50_s"] <= best["ttft_p99_s"] <= 2.0
    assert 0 < best["itl_p50_s"] <= best["itl_p99_s"] <= 0.1
    assert best["tokens_per_s_per_gpu"] == pytest.approx(best["output_tokens_per_s"] / best["gpus"])
    assert best["gpu_hours"] == 24.0
    assert 0 < best["joules_per_token"] < 10
    assert tree["question"]["slo"] == {"ttft_s": 2.0, "itl_s": 0.1, "percentile": 99.0}
    assert {"limit", "needs", "has", "words", "plan"} <= set(tree["rejected"][0])
    assert answered(capsys, *ONLINE) == tree, "equal questions get equal answers"


def test_without_a_rate_it_tells_how_much_there_is(capsys: Captured) -> None:
    """Published, TensorRT-LLM v1.0, 8B FP8 on one H100, 1000/1000: 15,220 tokens/s; another engine, hence the band."""
    ask = ("plan", "llama-3.1-8b-fp8-all-linear", "--hardware", "1x1xH100", "--kv-dtype", "fp8", "--top", "1")
    tree = answered(capsys, *ask, "--input-tokens", "1000", "--output-tokens", "1000")
    (best,) = tree["plans"]
    assert best["offline_tokens_per_s"] == pytest.approx(15_220, rel=0.45)
    assert tree["question"]["slo"] == {"ttft_s": None, "itl_s": None, "percentile": 99.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hardware", "2x8xB300"], "GPU 'B300' is not known: there are H100-80GB, H200-141GB, A100-80GB"),
        (["--hardware", "1x8xH100", "--max-gpu-hours", "1", "--rate", "1"], "the budget gives 0.04167"),
        (["--hardware", "many"], "hardware 'many' is not understood: write 2x8xH100-80GB"),
        (["--context", "200000"], "context 200,000 is beyond llama-3.1-8b's 131,072 tokens"),
        (["--dtype", "int4"], "--dtype 'int4': there are bf16, fp8-ffn, fp8"),
        (["--emit", "config", "--rank", "9", "--rate", "1", "--top", "1"], "--rank 9: only 1 plans hold"),
        (["--trace", "/nowhere.csv"], "give --trace, or --input-tokens and --output-tokens, not both"),
    ],
)
def test_bad_questions_are_refused_in_words(options: list[str], words: str, capsys: Captured) -> None:
    assert main([*ASK_8B, *options]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "-1"], "'-1' is not a number above 0"),
        (["--percentile", "100"], "'100' is not a percentile"),
        (["--input-tokens", "900:100"], "the 99th percentile is below the median"),
        (["--top", "0"], "'0' is not a whole number above 0"),
    ],
)
def test_bad_options_are_named(options: list[str], words: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main([*ASK_8B, *options])
    assert words in capsys.readouterr().err


def test_an_objective_that_nothing_meets_ends_with_the_closest_and_an_exit_code(capsys: Captured) -> None:
    assert main([*ASK_8B, "--rate", "1", "--itl", "0.001"]) == 1
    out, err = capsys.readouterr()
    assert "llama31: no plan holds. Closest: llama-3.1-8b tp2 on H100-80GB" in err
    assert "one sequence alone gets a token every " in out
    assert "> 1 ms" in out


def test_no_plan_no_file(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "plan.yaml"
    assert main([*ASK_8B, "--rate", "1", "--itl", "0.001", "--emit", "config", "--out", str(file)]) == 1
    assert "No plan holds." in capsys.readouterr().out
    assert not file.exists()


def test_405b_on_one_node_of_h100_says_what_would_hold_it(capsys: Captured) -> None:
    ask = ["plan", "llama-3.1-405b", "--hardware", "1x8xH100", "--input-tokens", "1000", "--output-tokens", "500"]
    assert main(ask) == 1
    out = capsys.readouterr().out
    assert "tp8 on H100-80GB: weights 101.5 GB per rank > 73.4 GB usable" in out
    assert "  llama-3.1-405b tp8pp2 on 2 nodes of 8 H100-80GB: KV room for 702,015 tokens in bf16" in out
    assert "  llama-3.1-405b-fp8 tp8 on 1 node of 8 H100-80GB: " in out


def test_the_emitted_config_is_what_serve_reads_and_checks(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "plan.yaml"
    assert main([*ONLINE, "--emit", "config", "--out", str(file)]) == 0
    assert capsys.readouterr().out == ""
    config = load_config(str(file))
    assert not list(check.memory_faults(config))
    node = NodeSnapshot("a", "10.0.0.1", 64, 64, 2, 2)
    assert not check.what_is_missing(config, Topology((node,)))
    assert config.planned is not None
    assert config.planned.kv_tokens == check.kv_tokens(config)
    main(["serve", "--check", "--config", str(file)])
    told = capsys.readouterr().out
    assert "replicas   1, each on 1 node of 2 x H100-80GB" in told
    assert "refused" not in told


def test_the_emitted_values_are_the_charts(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "values.yaml"
    assert main([*ONLINE, "--emit", "values", "--out", str(file)]) == 0
    tree = read_yaml(str(file))
    jsonschema.validate(tree, values_schema())
    config = tree.pop("config")
    assert (config["model"], config["plan"]) == ("llama-3.1-8b", "tp1")
    values = ChartValues.model_validate(tree)
    assert values.weights.source == "meta-llama/Llama-3.1-8B-Instruct"


def test_the_frontier_is_drawn_twice(tmp_path: Path, capsys: Captured) -> None:
    assert main([*ONLINE, "--plot", str(tmp_path / "frontier.svg")]) == 0
    capsys.readouterr()
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "frontier.svg").read_text()
    assert "<svg" in drawn


def test_a_trace_brings_lengths_and_rate(tmp_path: Path, capsys: Captured) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{second},{400 + second},{50 + second % 7}" for second in range(200)]
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    ask = ("plan", "llama-3.1-8b", "--hardware", "1x1xH100", "--trace", str(trace), "--top", "1")
    tree = answered(capsys, *ask)
    assert tree["question"]["rate_per_s"] == pytest.approx(1.0)
    assert tree["plans"][0]["goodput_per_s"] == pytest.approx(1.0, rel=0.05)
    trace.write_text("when,tokens\n1,2\n")
    assert main(list(ask)) == 1
    assert "column arrival_s" in capsys.readouterr().err
