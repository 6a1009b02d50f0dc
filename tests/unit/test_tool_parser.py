"""Does every form of a call become a call, everything else stay text, and no cut make a difference?"""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama31.chat import BuiltinTool, FunctionTool, Tool, ToolCall, ToolMode, ToolPolicy
from llama31.codec import CallDecoder, ModelCodec, StreamDecoder
from llama31.prompt import Llama31Prompt
from llama31.tokenizer import Llama31Tokenizer
from llama31.tool_parser import Control, Parsed, ToolParser

FUNCTIONS: tuple[Tool, ...] = tuple(map(FunctionTool, ("f", "g", "get_weather")))
SEARCHES: tuple[Tool, ...] = (*FUNCTIONS, BuiltinTool.SEARCH, BuiltinTool.MATH)
EVERYTHING: tuple[Tool, ...] = (*SEARCHES, BuiltinTool.CODE)
TAG, EOM, EOT, HEADER, HEADER_END = 10, 11, 12, 13, 14
CONTROLS = {
    TAG: Control.CODE,
    EOM: Control.END_OF_MESSAGE,
    EOT: Control.END_OF_TURN,
    HEADER: Control.HEADER,
    HEADER_END: Control.HEADER_END,
}
MARKS = {"<TAG>": TAG, "<EOM>": EOM, "<EOT>": EOT, "<H>": HEADER, "</H>": HEADER_END}
F1 = '{"name": "f", "parameters": {"x": 1}}'
G2 = '{"name": "g", "parameters": {"y": 2}}'


def parse(
    output: str, tools: tuple[Tool, ...] = EVERYTHING, cut_chars: int = 10**9, max_calls: int | None = None
) -> Parsed:
    """`output` has control tokens in the notation of MARKS; the text between them is fed in equal cuts."""
    parser = ToolParser(tools, CONTROLS, "seed", max_calls)
    parts: list[Parsed] = []
    fed_chars = 0
    while output:
        found = [(at, mark) for mark in MARKS if (at := output.find(mark)) >= 0]
        end, mark = min(found, default=(len(output), ""))
        parts += [parser.push(output[i : min(i + cut_chars, end)]) for i in range(0, end, cut_chars)]
        fed_chars += end
        if mark:
            parser.control(MARKS[mark], fed_chars)
            parts.append(parser.push(""))
        output = output[end + len(mark) :]
    parts.append(parser.finish())
    return Parsed("".join(part.text for part in parts), tuple(call for part in parts for call in part.calls))


def said(calls: tuple[ToolCall, ...]) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments_json)) for call in calls]


CALLS: list[tuple[str, list[tuple[str, object]], str]] = [
    # One JSON object, in the spellings that models use.
    (F1, [("f", {"x": 1})], ""),
    ('{"name": "f", "arguments": {"x": 1}}', [("f", {"x": 1})], ""),
    ('{"type": "function", "name": "f", "parameters": {}}', [("f", {})], ""),
    ('{"parameters": {"x": 1}, "name": "f"}', [("f", {"x": 1})], ""),
    ('{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}', [("f", {"x": 1})], ""),
    ('{"type": "function", "function": "f", "parameters": {"x": 1}}', [("f", {"x": 1})], ""),
    ('{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}', [("f", {"x": 1})], ""),
    ('{"name": "f", "parameters": null}', [("f", {})], ""),
    ("{'name': 'f', 'parameters': {'x': 'it\\'s'}}", [("f", {"x": "it's"})], ""),
    (" \n" + F1 + "\n", [("f", {"x": 1})], ""),
    # Values.
    (
        '{"name": "f", "parameters": {"a": [{"b": {"c": []}}], "d": "}{"}}',
        [("f", {"a": [{"b": {"c": []}}], "d": "}{"})],
        "",
    ),
    ('{"name": "f", "parameters": {"x": "a\nb"}}', [("f", {"x": "a\nb"})], ""),
    ('{"name": "f", "parameters": {"x": True, "y": None,}}', [("f", {"x": True, "y": None})], ""),
    ('{"name": "f", "parameters": {"x": "\\ud800"}}', [("f", {"x": "\ud800"})], ""),
    ("{'name': 'f', 'parameters': {'x': '\\ud800'}}", [("f", {"x": "\ud800"})], ""),
    # Several.
    (f"{F1}; {G2}", [("f", {"x": 1}), ("g", {"y": 2})], ""),
    (f"{F1}\n{G2}", [("f", {"x": 1}), ("g", {"y": 2})], ""),
    (f"{F1}{G2}", [("f", {"x": 1}), ("g", {"y": 2})], ""),
    (f"[{F1}, {G2}]", [("f", {"x": 1}), ("g", {"y": 2})], ""),
    (f"<TAG>{F1}<TAG>{G2}<EOM>", [("f", {"x": 1}), ("g", {"y": 2})], ""),
    (f"<TAG>{F1}<EOM><EOT>", [("f", {"x": 1})], ""),
    # Text around them stays.
    (f"Calling: {F1}", [("f", {"x": 1})], "Calling: "),
    (f"{F1} done", [("f", {"x": 1})], " done"),
    (f"First {F1} then {G2}.", [("f", {"x": 1}), ("g", {"y": 2})], "First  then ."),
    (f"Sure.<TAG>{F1}<EOM>", [("f", {"x": 1})], "Sure."),
    (f"{{{F1}", [("f", {"x": 1})], "{"),
    (f"`{F1}`", [("f", {"x": 1})], "``"),
    # Fences.
    (f"```json\n{F1}\n```", [("f", {"x": 1})], ""),
    (f"```\n{F1}\n{G2}\n```", [("f", {"x": 1}), ("g", {"y": 2})], ""),
    (f"Here:\n```json\n[{F1}]\n```\nBye", [("f", {"x": 1})], "Here:\n\nBye"),
    (f"```json\n{F1}", [("f", {"x": 1})], ""),
    (f"```json\n{F1}\nnote\n```", [("f", {"x": 1})], "```json\n\nnote\n```"),
    # Function tags.
    ('<function=f>{"x": 1}</function>', [("f", {"x": 1})], ""),
    ('<function=f>{"x": 1}</function><function=g>{}</function>', [("f", {"x": 1}), ("g", {})], ""),
    ('<function=f>{"x": {"y": "it\'s\n"}}</function>', [("f", {"x": {"y": "it's\n"}})], ""),
    ("<function=f>{'x': 'y'}</function>", [("f", {"x": "y"})], ""),
    ("<function=f></function>", [("f", {})], ""),
    ('<function=f>{"x": 1} then', [("f", {"x": 1})], " then"),
    # Python lists.
    ('[f(x=1), g(y="b")]', [("f", {"x": 1}), ("g", {"y": "b"})], ""),
    ('[f(a=[1, 2.5], b={"k": None}, c="(\\"")]', [("f", {"a": [1, 2.5], "b": {"k": None}, "c": '("'})], ""),
    # Built-in tools.
    ('<TAG>brave_search.call(query="gold")<EOM>', [("brave_search", {"query": "gold"})], ""),
    ('brave_search.call(query="gold")', [("brave_search", {"query": "gold"})], ""),
    ('<TAG>wolfram_alpha.call(query="\\frac{1}{2}")<EOM>', [("wolfram_alpha", {"query": "\\frac{1}{2}"})], ""),
    ("<TAG>brave_search.call(query = 'a \"b\"')<EOM>", [("brave_search", {"query": 'a "b"'})], ""),
    ('<TAG>brave_search.call(query="say \\"hi\\"", top=3)', [("brave_search", {"query": 'say "hi"', "top": 3})], ""),
    ('<TAG>brave_search.call(query="C++ "move" semantics")', [("brave_search", {"query": 'C++ "move" semantics'})], ""),
    ('{"name": "brave_search", "parameters": {"q": "gold"}}', [("brave_search", {"query": "gold"})], ""),
    ('{"name": "brave_search", "parameters": {}}', [("brave_search", {})], ""),
    ('f.call(x="1")', [("f", {"x": "1"})], ""),
    # Code.
    ("<TAG>print(1)\n<EOM>", [("code_interpreter", {"code": "print(1)\n"})], ""),
    ('<TAG>x = {"name": "f"}\nf(x)<EOM>', [("code_interpreter", {"code": 'x = {"name": "f"}\nf(x)'})], ""),
    ('<TAG>brave_search.call(query="a")\nprint(1)', [("brave_search", {"query": "a"})], "\nprint(1)"),
    ("Now:<TAG>1+1<EOM>", [("code_interpreter", {"code": "1+1"})], "Now:"),
    # A header that the model repeats.
    (f"<H>assistant</H>\n\n{F1}<EOT>", [("f", {"x": 1})], ""),
    ("<H>assistant</H>\n\nHi<EOT>", [], "Hi"),
    ("<H>assistant</H>Hi", [], "Hi"),
    ("<H>oracle", [], "oracle"),
]
TEXTS = [
    "",
    "\n",
    "plain",
    "{",
    '{"name": "Alice", "age": 3}',
    '{"name": "f"}',
    '{"name": "f", "parameters": [1]}',
    '{"name": "f", "parameters": 7}',
    '{"name": "f", "parameters": {"x": }}',
    '{"name": "f", "parameters": {"x": NaN}}',
    '{"name": "f", "parameters": {"x": 1}, "extra": 2}',
    '{"name": "f", "name": "g", "parameters": {}}',
    '{"name": "unknown", "parameters": {}}',
    '{"type": "object", "name": "f", "parameters": {}}',
    '{"name": "f", "parameters": "not json"}',
    '{"name": "f", "parameters": {"x": "',
    '{"name": "f" "parameters": {}}',
    "[f(1)]",
    "[f(x=y)]",
    "[f(x=b'bytes')]",
    "[f(**x)]",
    "[1, 2]",
    "<function=unknown>{}</function>",
    "<function=f>[]</function>",
    "<functional>",
    "a < b and [c] or {d}",
    "```python\nprint(1)\n```",
    "f(x)",
    "f.call",
    "f.called(x=1)",
    "xf.call(x=1)",
    "x.f.call(x=1)",
    "brave_search.call(gold)",
    "get_weather is a function; g too",
    "I'd use `f` or (f",
]


@pytest.mark.parametrize(("output", "calls", "text"), CALLS, ids=lambda v: str(v)[:70])
@pytest.mark.parametrize("cut_chars", [10**9, 1, 3])
def test_calls(output: str, calls: list[tuple[str, object]], text: str, cut_chars: int) -> None:
    parsed = parse(output, cut_chars=cut_chars)
    assert (said(parsed.calls), parsed.text) == (calls, text)
    assert all(call.arguments_json.encode() for call in parsed.calls)


@pytest.mark.parametrize("output", TEXTS, ids=lambda v: v[:70])
@pytest.mark.parametrize("cut_chars", [10**9, 1])
def test_text_stays_as_it_is(output: str, cut_chars: int) -> None:
    assert parse(output, cut_chars=cut_chars) == Parsed(output)


@pytest.mark.parametrize(
    ("output", "tools", "text"),
    [
        ("<TAG>print(1)<EOM>", SEARCHES, "print(1)"),
        ('<TAG>brave_search.call(query="x")', FUNCTIONS, 'brave_search.call(query="x")'),
        (G2, (FunctionTool("f"),), G2),
    ],
)
def test_only_offered_tools_are_called(output: str, tools: tuple[Tool, ...], text: str) -> None:
    assert parse(output, tools) == Parsed(text)
    assert parse(output).calls


def test_a_second_call_stays_text_where_one_is_allowed() -> None:
    parsed = parse(f"{F1}\n{G2}", max_calls=1)
    assert (said(parsed.calls), parsed.text) == ([("f", {"x": 1})], f"\n{G2}")
    parsed = parse(f"[{F1}, {G2}]\n", max_calls=1)
    assert (said(parsed.calls), parsed.text) == ([("f", {"x": 1})], f"[, {G2}]\n")


def test_call_ids_come_from_the_seed_and_the_place() -> None:
    ids = [call.id for call in parse(f"{F1}{F1}").calls]
    assert ids == [call.id for call in parse(f"x {F1} y {F1}").calls]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("call_") for call_id in ids)


@pytest.mark.parametrize(
    ("shown", "held"),
    [
        ("Hello", ""),
        ('{"na', '{"na'),
        ('{"foo"', ""),
        ('{"a long text in quotes', ""),
        ('{"name": "Al', '{"name": "Al'),
        ('{"name": "Alice"', ""),
        ("[1", ""),
        ("<div", ""),
        ("<func", "<func"),
        ("gi", ""),
        ("get_w", "get_w"),
        ("``", "``"),
        ("```python\np", ""),
        ("\n\n", "\n\n"),
    ],
)
def test_text_is_held_no_longer_than_a_call_may_come(shown: str, held: str) -> None:
    parser = ToolParser(FUNCTIONS, CONTROLS, "seed")
    given_out = "".join(parser.push(character).text for character in shown)
    assert given_out == shown.removesuffix(held)
    assert parser.is_holding is bool(held)


@pytest.mark.parametrize(
    "output",
    [
        "<TAG>" + '[f(a={"a":' * 20_000,
        "[f(a=" + "[" * 50_000,
        '{"parameters":' * 20_000,
        '{"arguments": {"a": [' + "[{" * 30_000,
        'f.call(x="' * 20_000,
        "f.call(x='\\" * 20_000,
        "[f(x=" + "-" * 15_000 + "1)]",
        "[f(x=" + "1+" * 7_000 + "1)]",
        "f.call(" * 30_000,
        "`" * 50_000,
        "g" * 100_000,
        "g " * 50_000,
        f"{F1} x" * 5_000,
        '{"name": "f", "parameters": {"x": ' + "9" * 10_000 + "}}",
    ],
    ids=lambda v: v[:20],
)
def test_hostile_outputs_cost_little(output: str) -> None:
    began_s = time.process_time()
    parsed = parse(output, SEARCHES)
    assert time.process_time() - began_s < 1
    if not parsed.calls:
        assert parsed.text == output.replace("<TAG>", "")


CALL_PIECES = [F1, G2, "<function=f>", "</function>", "f.call(", 'brave_search.call(query="a")', "f(", "x=1", ")"]
PIECES = st.sampled_from([*CALL_PIECES, *MARKS, *"{}[],;:'\"\\ \nfé", "```", "json", "print(1)", "assistant", "name"])


@settings(max_examples=50, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=3), max_size=12), cut_chars=st.integers(1, 5))
def test_no_cut_makes_a_difference(pieces: list[str], cut_chars: int) -> None:
    output = "".join(pieces)
    whole = parse(output)
    assert parse(output, cut_chars=cut_chars) == whole
    assert all(isinstance(arguments, dict) for _, arguments in said(whole.calls))
    if not whole.calls:
        for mark in MARKS:
            output = output.replace(mark, "")
        assert whole.text == output or "assistant" in output


@settings(max_examples=50, deadline=None)
@given(
    ids=st.lists(
        st.sampled_from([128008, 128009, 128010]) | st.integers(0, 128255) | st.sampled_from([90, 5018, 92, 3500, 58]),
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_no_cut_of_the_ids_makes_a_difference(
    llama31_tokenizer: Llama31Tokenizer, ids: list[int], cuts: list[int]
) -> None:
    controls = {llama31_tokenizer.special_id(control.value): control for control in Control}

    def run(bounds: list[int]) -> tuple[str, list[ToolCall], int, str | None]:
        decoder = CallDecoder(StreamDecoder(llama31_tokenizer, ("}}",)), ToolParser(EVERYTHING, controls, "seed"))
        pieces = [decoder.push(ids[a:b]) for a, b in zip([0, *bounds], [*bounds, len(ids)], strict=True)]
        pieces.append(decoder.finish())
        stop = next((piece.matched_stop for piece in pieces if piece.matched_stop), None)
        calls = [call for piece in pieces for call in piece.calls]
        return "".join(p.text for p in pieces), calls, sum(p.released_ids for p in pieces), stop

    assert run(sorted(min(cut, len(ids)) for cut in cuts)) == run([])


def test_ids_are_released_with_what_they_complete(llama31_tokenizer: Llama31Tokenizer) -> None:
    controls = {llama31_tokenizer.special_id(control.value): control for control in Control}
    decoder = CallDecoder(StreamDecoder(llama31_tokenizer), ToolParser(FUNCTIONS, controls, "seed"))
    ids = llama31_tokenizer.encode(f"Hi {F1}")
    pieces = [decoder.push([token_id]) for token_id in ids]
    assert [piece.released_ids for piece in pieces][:1] == [1]
    assert all(not piece.released_ids for piece in pieces[1:-1] if not piece.text)
    assert (pieces[-1].released_ids, len(pieces[-1].calls)) == (len(ids) - sum(p.released_ids for p in pieces[:-1]), 1)


def test_nothing_is_parsed_without_tools(llama31_tokenizer: Llama31Tokenizer) -> None:
    codec = ModelCodec(llama31_tokenizer, Llama31Prompt(llama31_tokenizer))
    assert codec.tool_parser((), ToolPolicy(), "seed") is None
    assert codec.tool_parser(EVERYTHING, ToolPolicy(ToolMode.NONE), "seed") is None
    assert codec.tool_parser(EVERYTHING, ToolPolicy(), "seed") is not None
    assert isinstance(codec.decoder(), StreamDecoder)
