"""Does the unmodified `openai` package work against the HTTP door?"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from http_door import Door, opened
from scripted_gateway import MODEL, USAGE, Request, failing, started

from llama31 import errors
from llama31.chat import (
    ChatRequest,
    ChoiceDone,
    Completed,
    CompletionRequest,
    Delta,
    Event,
    FinishReason,
    JsonSchema,
    TokenColumns,
    ToolCallDelta,
)

openai = pytest.importorskip("openai", reason="the openai package is not installed")

HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with opened() as found:
        yield found


@pytest.fixture
def client(door: Door) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, http_client=door.client)


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello there", "stop")
    assert answer.usage.total_tokens == USAGE.prompt_tokens + USAGE.output_tokens


async def test_chat_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello there"
    assert chunks[-1].usage.completion_tokens == USAGE.output_tokens


async def test_completions(client: openai.AsyncOpenAI) -> None:
    assert (await client.completions.create(model=MODEL, prompt="hi")).choices[0].text == "Hello there"
    stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello there"


async def calls_weather(request: Request) -> AsyncIterator[Event]:
    yield started()
    yield Delta(0, "", tool_calls=(ToolCallDelta(0, "call-1", "weather", ""),))
    for piece in ('{"city":', ' "Rome"}'):
        yield Delta(0, "", tool_calls=(ToolCallDelta(0, arguments_json_fragment=piece),))
    yield ChoiceDone(0, FinishReason.TOOL_CALLS)
    yield Completed(USAGE)


async def test_tools(door: Door, client: openai.AsyncOpenAI) -> None:
    door.gateway.script = calls_weather
    answer = await client.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER], tool_choice="auto")
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (message.tool_calls[0].function.name, message.tool_calls[0].function.arguments) == (
        "weather",
        '{"city": "Rome"}',
    )
    # What the client got goes back as it is.
    result = {"role": "tool", "tool_call_id": "call-1", "content": "sunny"}
    await client.chat.completions.create(model=MODEL, messages=[*HI, message, result], tools=[WEATHER])
    request = door.gateway.requests[-1]
    assert isinstance(request, ChatRequest)
    assert request.messages[1].tool_calls[0].arguments_json == '{"city": "Rome"}'


async def test_tools_through_the_clients_stream_helper(door: Door, client: openai.AsyncOpenAI) -> None:
    door.gateway.script = calls_weather
    async with client.chat.completions.stream(model=MODEL, messages=HI, tools=[WEATHER]) as stream:
        async for _ in stream:
            pass
        found = await stream.get_final_completion()
    assert found.choices[0].message.tool_calls[0].function.arguments == '{"city": "Rome"}'


async def test_response_format(door: Door, client: openai.AsyncOpenAI) -> None:
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    await client.chat.completions.create(
        model=MODEL, messages=HI, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert door.gateway.requests[-1].options.constraint == JsonSchema('{"type": "object"}')
    await client.chat.completions.create(model=MODEL, messages=HI, extra_body={"guided_regex": "a+", "top_k": 5})
    assert door.gateway.requests[-1].options.sampling.top_k == 5


async def test_logprobs(door: Door, client: openai.AsyncOpenAI) -> None:
    async def script(request: Request) -> AsyncIterator[Event]:
        yield started()
        yield Delta(0, "H", TokenColumns((72,), (-0.5,), 2, (72, 104), (-0.5, -1.5)))
        yield ChoiceDone(0, FinishReason.END_OF_TURN)
        yield Completed(USAGE)

    door.gateway.script = script
    answer = await client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2)
    (token,) = answer.choices[0].logprobs.content
    assert (token.token, token.bytes, [top.token for top in token.top_logprobs]) == ("H", [72], ["H", "h"])
    columns = (await client.completions.create(model=MODEL, prompt="x", logprobs=2)).choices[0].logprobs
    assert (columns.tokens, columns.top_logprobs) == (["H"], [{"H": -0.5, "h": -1.5}])


async def test_several_choices(door: Door, client: openai.AsyncOpenAI) -> None:
    async def script(request: Request) -> AsyncIterator[Event]:
        assert isinstance(request, ChatRequest | CompletionRequest)
        yield started()
        for choice in range(request.options.num_choices):
            yield Delta(choice, str(choice))
            yield ChoiceDone(choice, FinishReason.END_OF_TURN)
        yield Completed(USAGE)

    door.gateway.script = script
    answer = await client.chat.completions.create(model=MODEL, messages=HI, n=3)
    assert [choice.message.content for choice in answer.choices] == ["0", "1", "2"]


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_errors(door: Door, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as invalid:
        await client.chat.completions.create(model=MODEL, messages=HI, temperature=3)
    assert (invalid.value.param, invalid.value.code) == ("temperature", "invalid_argument")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="other", messages=HI)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id
    for error, kind in (
        (errors.Overloaded("full"), openai.RateLimitError),
        (errors.Unauthenticated("who?"), openai.AuthenticationError),
        (errors.PermissionDenied("n", "no"), openai.PermissionDeniedError),
        (errors.Draining(), openai.InternalServerError),
    ):
        door.gateway.script = failing(error)
        with pytest.raises(kind):
            await client.chat.completions.create(model=MODEL, messages=HI)


async def test_an_error_in_the_middle_of_a_stream(door: Door, client: openai.AsyncOpenAI) -> None:
    door.gateway.script = failing(errors.StreamInterrupted("replica-1", 1, "lost"), after_start=True)
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "stream_interrupted"


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(errors.Overloaded("full", 0.01), 3), (errors.DuplicateRequest("x"), 1), (errors.InternalError(), 1)],
)
async def test_the_client_follows_our_rule_for_retries(
    door: Door, client: openai.AsyncOpenAI, error: errors.Llama31Error, attempts: int
) -> None:
    door.gateway.script = failing(error)
    with pytest.raises(openai.APIStatusError):
        await client.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=HI)
    assert len(door.gateway.calls) == attempts
