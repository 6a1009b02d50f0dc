"""What does an unmodified openai client for Python see? Prints one JSON object: case -> outcome."""

import asyncio
import json
import sys
import traceback

import openai
from pydantic import BaseModel

SERVED = json.loads(sys.argv[1])
MODEL = SERVED["model"]
OPTIONS = {"base_url": SERVED["http"] + "/v1", "api_key": "none", "timeout": 10.0, "max_retries": 0}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
client = openai.OpenAI(**OPTIONS)


class City(BaseModel):
    city: str


FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}


def user(text):
    return [{"role": "user", "content": text}]


def create(text, **options):
    return client.chat.completions.create(model=MODEL, messages=user(text), **options)


def was_freed(name):
    return create(f"freed {name}").choices[0].finish_reason


def calls_of(message):
    return [[call.id, call.function.name, call.function.arguments] for call in message.tool_calls]


def models():
    return {"list": [model.id for model in client.models.list()], "one": client.models.retrieve(MODEL).id}


def chat():
    answer = create("hi", extra_headers={"x-request-id": "from-client"})
    choice = answer.choices[0]
    return {
        "id": answer._request_id,
        "role": choice.message.role,
        "text": choice.message.content,
        "reason": choice.finish_reason,
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
    }


def stream():
    chunks = list(create("hi", stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in deltas),
        "reason": deltas[-1].finish_reason,
        "usage": chunks[-1].usage.completion_tokens,
    }


def stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=user("hi")) as opened:
        return opened.get_final_completion().choices[0].message.content


def tools():
    answer = create("tools please", tools=TOOLS, tool_choice="auto").choices[0]
    return {"calls": calls_of(answer.message), "reason": answer.finish_reason}


def tools_streamed():
    with client.chat.completions.stream(model=MODEL, messages=user("tools please"), tools=TOOLS) as opened:
        return calls_of(opened.get_final_completion().choices[0].message)


def tool_result():
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    turns = [
        *user("How is the weather?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=turns, tools=TOOLS)
    return answer.choices[0].message.content


def response_format():
    return create("hi", response_format=FORMAT).choices[0].message.content


def parsed():
    answer = client.chat.completions.parse(model=MODEL, messages=user("hi"), response_format=City)
    return answer.choices[0].message.parsed.city


def logprobs():
    scored = create("hi", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    return [[row.token, row.logprob, [top.token for top in row.top_logprobs]] for row in scored]


def choices():
    return [[choice.index, choice.message.content] for choice in create("hi", n=2).choices]


def completions():
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=5)
    return [[choice.index, choice.text, choice.finish_reason] for choice in answer.choices]


def completion_streamed():
    pieces = client.completions.create(model=MODEL, prompt="a", stream=True)
    return "".join(choice.text for piece in pieces for choice in piece.choices)


def refusal(ask):
    try:
        ask()
    except openai.APIStatusError as error:
        body = error.body
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "type": body["type"],
            "code": body["code"],
            "param": body["param"],
        }
    return "no error"


def errors():
    return {
        "model": refusal(lambda: client.chat.completions.create(model="llama-9", messages=user("hi"))),
        "field": refusal(lambda: create("hi", temperature=9)),
        "unknown": refusal(lambda: create("hi", extra_body={"colour": "red"})),
        "overloaded": refusal(lambda: create("overloaded")),
        "bug": refusal(lambda: create("bug")),
    }


def retry_after():
    try:
        create("overloaded")
    except openai.RateLimitError as error:
        return error.response.headers["retry-after"]


def broken_stream():
    texts = []
    try:
        for chunk in create("break", stream=True):
            texts.append(chunk.choices[0].delta.content or "")
    except openai.APIError as error:
        return {"text": "".join(texts), "code": error.code}


def cancel():
    opened = create("hang openai-python-1", stream=True)
    for chunk in opened:
        if chunk.choices[0].delta.content:
            break
    opened.close()
    return was_freed("openai-python-1")


def timeout():
    try:
        client.with_options(timeout=0.3).chat.completions.create(model=MODEL, messages=user("hang openai-python-2"))
    except openai.APITimeoutError:
        return was_freed("openai-python-2")


def asyncio_client():
    async def ask():
        async with openai.AsyncOpenAI(**OPTIONS) as aio:
            opened = await aio.chat.completions.create(model=MODEL, messages=user("hi"), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in opened])

    return asyncio.run(ask())


CASES = (
    *(models, chat, stream, stream_helper, tools, tools_streamed, tool_result, response_format, parsed, logprobs),
    *(choices, completions, completion_streamed, errors, retry_after, broken_stream, cancel, timeout, asyncio_client),
)


def main():
    found = {}
    for case in CASES:
        try:
            found[case.__name__] = case()
        except Exception:
            found[case.__name__] = {"raised": traceback.format_exc()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
