"""Would the runner notice a wrong answer, a case that it does not understand, and a stale page?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.ingress.grpc import IngressSettings
from deployments.ingress.http import HttpSettings
from llama31.v1 import chat_service_pb2 as chat_pb
from tests.bad_inputs import situations
from tests.bad_inputs.cases import Case, UnknownKey, expand, load_cases, substitute
from tests.bad_inputs.checks import CHECKS
from tests.bad_inputs.deviations import DEVIATIONS, expectation
from tests.bad_inputs.field_paths import is_at, openai_path, proto_paths, put
from tests.bad_inputs.page import PAGE, rendered
from tests.bad_inputs.proto_messages import message_bytes
from tests.bad_inputs.verdict import Seen, faults

GOOD = Seen(("INVALID_ARGUMENT",), "spec.model: must name", "INVALID_FIELD", "spec.model", everything="spec.model")
EXPECTED = {
    "status": "INVALID_ARGUMENT",
    "detail_contains": "spec.model",
    "reason": "INVALID_FIELD",
    "field": "spec.model",
}


def case(**request: Any) -> Case:
    return Case("X001", "grpc", {"method": "Chat", "base": "chat_ok", **request}, "a test", {"status": "OK"}, None)


def test_the_expected_answer_has_no_fault() -> None:
    assert faults(GOOD, EXPECTED) == []
    assert faults(GOOD, {"status": ["OK", "INVALID_ARGUMENT"]}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"status": "OK"},
        {"status": ["OK", "UNAVAILABLE"]},
        {"detail_contains": "spec.messages"},
        {"reason": "MALFORMED_MESSAGE"},
        {"field": "spec.messages"},
        {"field": "spec.model.name"},
        {"retry_info": True},
        {"must_not_contain": ["model"]},
        {"header": "retry-after"},
    ],
    ids=str,
)
def test_a_wrong_answer_is_noticed(change: dict[str, Any]) -> None:
    assert len(faults(GOOD, {**EXPECTED, **change})) == 1


def test_no_answer_may_hold_the_servers_own_words() -> None:
    leaking = Seen(("INTERNAL",), "internal error", everything='Traceback ... File "/srv/x.py"')
    assert len(faults(leaking, {"status": "INTERNAL"})) == 3


@pytest.mark.parametrize(
    "request_changes",
    [
        {"cosmic_rays": 3},
        {"client": "sings"},
        {"during": "a full moon"},
    ],
    ids=str,
)
def test_an_unknown_situation_fails_in_words(request_changes: dict[str, Any]) -> None:
    odd = case(**request_changes)
    with pytest.raises(UnknownKey, match="X001"):
        situations.needs_of(odd)


@pytest.mark.parametrize("value", [{"$fortune": 1}, [{"$fortune": 1}], {"a": {"$fortune": 1}}], ids=str)
def test_an_unknown_macro_fails_in_words(value: Any) -> None:
    with pytest.raises(UnknownKey, match="fortune"):
        expand(value)


def test_what_the_protobuf_cannot_say_fails_in_words() -> None:
    with pytest.raises(UnknownKey, match="cannot express"):
        message_bytes(case(set={"spec.sampling.temperature": "warm"}), "Chat", "m")


@pytest.mark.parametrize(
    ("macro", "expected"),
    [
        ({"$repeat": ["ab", 3]}, "ababab"),
        ({"$repeat_list": [{"a": 1}, 2]}, [{"a": 1}, {"a": 1}]),
        ({"$concat": ["a", {"$repeat": ["b", 2]}]}, "abb"),
        ({"$nest": 2}, "[[]]"),
        ({"$count": 3}, [0, 1, 2]),
        ({"$many": [2, 1.5]}, {"0": 1.5, "1": 1.5}),
        ({"$many_str": [1, 3]}, {"key-0": "xxx"}),
        ({"$alternation": 2}, "a0|a1"),
    ],
    ids=str,
)
def test_macros(macro: Any, expected: object) -> None:
    assert expand(macro) == expected


def test_schemas_are_what_their_names_say() -> None:
    assert len(expand({"$schema_bytes": 500})) == 500
    json.loads(expand({"$schema_bytes": 500}))
    assert str(json.loads(expand({"$schema_depth": 5}))).count("properties") == 5
    assert len(json.loads(expand({"$schema_enum": 7}))["enum"]) == 7


def test_constants_in_text() -> None:
    assert substitute("Bearer $TENANT_A", {"TENANT_A": "key"}) == "Bearer key"
    assert substitute("$MAX+1", {"MAX": 10}) == "11"
    with pytest.raises(UnknownKey, match="NOBODY"):
        substitute("$NOBODY", {})


def test_values_go_where_the_path_says() -> None:
    tree: dict[str, Any] = {"spec": {"messages": [{"parts": [{"text": "a"}]}]}}
    put(tree, "spec.messages[0].parts[0].text", "b")
    put(tree, "spec.sampling.temperature", 1)
    assert tree == {"spec": {"messages": [{"parts": [{"text": "b"}]}], "sampling": {"temperature": 1}}}


def test_fields_are_found_under_their_own_names() -> None:
    long = "spec.tools[1].function.parameters_json_schema"
    assert proto_paths("spec.tools[1].schema_json") == ("spec.tools[1].schema_json", long)
    assert openai_path("sampling.stop[0]") == "stop[0]"
    assert openai_path("tools[0].name") == "tools[0].function.name"
    assert is_at("spec.sampling.logit_bias[1]", "spec.sampling.logit_bias")
    assert not is_at("spec.sampling.logit_biases", "spec.sampling.logit_bias")


def test_short_forms_and_casts() -> None:
    message = {"role": "user", "content": "hi"}
    data = message_bytes(case(set={"spec.messages": [message], "spec.stop.min_output_tokens": -1}), "Chat", "m")
    spec = chat_pb.ChatRequest.FromString(data).spec
    assert (spec.messages[0].role, spec.messages[0].parts[0].text) == (chat_pb.ROLE_USER, "hi")
    assert spec.stop.min_output_tokens == 2**32 - 1


def test_another_file_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": "Z1", "channel": "grpc", "request": {}, "expect_grpc": None, "expect_http": None}
    (tmp_path / "unseen.jsonl").write_text(json.dumps(row) + "\n\n")
    monkeypatch.setenv("LLAMA31_BAD_INPUTS", str(tmp_path / "unseen.jsonl"))
    assert [found.id for found in load_cases()] == ["Z1"]


def test_every_case_of_ours_is_understood() -> None:
    for found in load_cases():
        found.check_keys()
        for expected in (found.expect_grpc or {}, found.expect_http or {}):
            assert expected.get("check", "") in ("", *CHECKS)
            assert expected.get("server_check", "") in ("", *CHECKS)


def test_deviations_are_about_cases_that_exist() -> None:
    by_id = {found.id: found for found in load_cases()}
    for row in DEVIATIONS:
        catalogue = by_id[row.case].expect_grpc if row.channel == "grpc" else by_id[row.case].expect_http
        assert catalogue is not None
        assert expectation(row.case, row.channel, catalogue) != dict(catalogue)


def test_the_page_is_fresh() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == rendered(page), "run: python -m tests.bad_inputs.page"


def test_the_limits_of_production_are_those_of_the_catalogue() -> None:
    """The runner waits for shorter ones."""
    grpc, http = IngressSettings(), HttpSettings()
    assert grpc.request_wait_s <= 10
    assert grpc.handshake_s <= 20
    assert grpc.write_stall_s <= 30
    assert http.headers_s <= 20
    assert http.body_s <= 60
    assert http.write_stall_s <= 30
