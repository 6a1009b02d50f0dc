"""What does an unmodified tritonclient see? Prints one JSON object: case -> outcome."""

import asyncio
import json
import queue
import sys
import traceback

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

SERVED = json.loads(sys.argv[1])
ADDRESS, MODEL = SERVED["grpc"], SERVED["model"]
LIMIT_S = 10


def text(*values, name="text_input"):
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=np.object_))
    return tensor


def flag(name, value):
    tensor = triton.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([value], dtype=bool))
    return tensor


def strings(result, name):
    found = result.as_numpy(name)
    return None if found is None else [value.decode() for value in found]


def is_final(result):
    return result.get_response().parameters["triton_final_response"].bool_param


def refusal(ask):
    try:
        ask()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return "no error"


class Stream:
    """A stream whose callbacks end in a queue."""

    def __init__(self):
        self.found = queue.Queue()
        self.client = triton.InferenceServerClient(ADDRESS)
        self.client.start_stream(callback=lambda result, error: self.found.put((result, error)))

    def ask(self, prompt, request_id, *more, **options):
        self.client.async_stream_infer(MODEL, [text(prompt), *more], request_id=request_id, **options)

    def next(self):
        return self.found.get(timeout=LIMIT_S)

    def results(self):
        """Until the final response."""
        while True:
            result, error = self.next()
            assert error is None, error
            yield result
            if is_final(result):
                return

    def __enter__(self):
        return self

    def __exit__(self, *cause):
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


def state(client):
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model": client.is_model_ready(MODEL),
        "unknown model": client.is_model_ready("llama-9"),
    }


def metadata(client):
    server, model = client.get_server_metadata(as_json=True), client.get_model_metadata(MODEL, as_json=True)
    return {
        "server": server["name"],
        "model": model["name"],
        "inputs": [tensor["name"] for tensor in model["inputs"]][:2],
        "outputs": [tensor["name"] for tensor in model["outputs"]],
    }


def infer(client):
    result = client.infer(MODEL, [text("Once upon a time")], request_id="r1", client_timeout=LIMIT_S)
    return {
        "id": result.get_response().id,
        "text": strings(result, "text_output"),
        "reason": strings(result, "finish_reason"),
        "tokens": [int(result.as_numpy(name)[0]) for name in ("num_input_tokens", "num_output_tokens")],
    }


def infer_many(client):
    result = client.infer(MODEL, [text("a", "b", "c")], client_timeout=LIMIT_S)
    return strings(result, "text_output")


def sampling_parameters(client):
    """As Triton's own example of its vLLM backend sends them: numbers as text."""
    values = json.dumps({"temperature": "0.1", "top_p": "0.95", "max_tokens": "100"})
    inputs = [text("hi"), text(values, name="sampling_parameters"), flag("exclude_input_in_output", True)]
    outputs = [triton.InferRequestedOutput("text_output")]
    result = client.infer(MODEL, inputs, outputs=outputs, parameters={"seed": 7}, client_timeout=LIMIT_S)
    return [strings(result, "text_output"), strings(result, "finish_reason")]


def errors(client):
    return {
        "model": refusal(lambda: client.infer("llama-9", [text("hi")])),
        "field": refusal(lambda: client.infer(MODEL, [text("hi")], parameters={"temperature": 9})),
        "overloaded": refusal(lambda: client.infer(MODEL, [text("overloaded")])),
        "bug": refusal(lambda: client.infer(MODEL, [text("bug")])),
    }


def deadline(client):
    """The client gives up; then the request's own timeout, which the server keeps."""
    return {
        "client": refusal(lambda: client.infer(MODEL, [text("hang t1")], client_timeout=0.2))["status"],
        "freed": strings(client.infer(MODEL, [text("freed t1")], client_timeout=LIMIT_S), "text_output"),
        "request": refusal(lambda: client.infer(MODEL, [text("hang t2")], timeout=200_000))["status"],
    }


def stream(client):
    with Stream() as opened:
        opened.ask("hi", "s1", flag("stream", True), enable_empty_final_response=True)
        results = list(opened.results())
        return {
            "text": [strings(result, "text_output") for result in results],
            "final": [is_final(result) for result in results],
            "reason": strings(results[-1], "finish_reason"),
        }


def stream_whole(client):
    with Stream() as opened:
        opened.ask("hi", "s1", flag("stream", False))
        return [strings(result, "text_output") for result in opened.results()]


def stream_goes_on_after_an_error(client):
    with Stream() as opened:
        opened.ask("overloaded", "s1")
        _, error = opened.next()
        opened.ask("hi", "s2")
        texts = [strings(result, "text_output")[0] for result in opened.results()]
        return {"error": error.message(), "text": "".join(texts)}


def cancel(client):
    with Stream() as opened:
        opened.ask("hang t3", "s1")
        first, _ = opened.next()
        opened.client.stop_stream(cancel_requests=True)
    freed = client.infer(MODEL, [text("freed t3")], client_timeout=LIMIT_S)
    return [strings(first, "text_output"), strings(freed, "text_output")]


def asyncio_client(client):
    async def ask():
        async with triton_aio.InferenceServerClient(ADDRESS) as aio:

            async def requests():
                yield {"model_name": MODEL, "inputs": [text("hi")], "request_id": "a1"}

            whole = await aio.infer(MODEL, [text("hi")], client_timeout=LIMIT_S)
            texts = []
            async for result, error in aio.stream_infer(requests(), stream_timeout=LIMIT_S):
                assert error is None, error
                texts.append(strings(result, "text_output"))
            return [strings(whole, "text_output"), texts]

    return asyncio.run(ask())


CASES = (
    state,
    metadata,
    infer,
    infer_many,
    sampling_parameters,
    errors,
    deadline,
    stream,
    stream_whole,
    stream_goes_on_after_an_error,
    cancel,
    asyncio_client,
)


def main():
    found = {}
    with triton.InferenceServerClient(ADDRESS) as client:
        for case in CASES:
            try:
                found[case.__name__] = case(client)
            except Exception:
                found[case.__name__] = {"raised": traceback.format_exc()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
