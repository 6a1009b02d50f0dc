"""How do events become responses of the Open Inference Protocol?"""

from __future__ import annotations

from collections import defaultdict

from deployments.call import ModelStatus
from deployments.ingress.oip_codec import Infer
from deployments.ingress.oip_tensors import Values, add_tensor, describe_tensors
from deployments.ingress.openai_answers import FINISH_REASONS
from deployments.ingress.status import public_text, retry_delay_s, status_row
from llama31.chat import ChoiceDone, Completed, Delta, Event, FinishReason, Started, Usage
from llama31.errors import InternalError, Llama31Error
from llama31.oip.v2 import inference_pb2 as pb

FINAL = "triton_final_response"
SERVER_NAME = "llama31"
# Triton's name for the parameters of a request.
EXTENSIONS = ("parameters",)


class InferAnswer:
    """The answers to one request in the making."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self._revision = ""
        self._texts: dict[int, list[str]] = defaultdict(list)
        self._reasons: dict[int, FinishReason] = {}
        self._usage: Usage | None = None
        self.started: Started | None = None

    def take(self, event: Event) -> bytes | None:
        """Returns the message of the stream that the event makes, if the answer is sent in deltas."""
        match event:
            case Started():
                self.started = event
                self._revision = event.model_revision
            case Delta() if self._infer.in_deltas:
                return self._delta(event.text)
            case Delta():
                self._texts[event.choice].append(event.text)
            case ChoiceDone():
                self._reasons[event.choice] = event.finish_reason
            case Completed():
                self._usage = event.usage
        return None

    def encode(self) -> bytes:
        """A `ModelInferResponse`. Raises: InternalError if the answer is not complete."""
        return self._whole().SerializeToString()

    def encode_last(self) -> bytes:
        """The last message of the stream for this request. Raises: InternalError if the answer is not complete."""
        response = self._whole()
        response.parameters[FINAL].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()

    def _delta(self, text: str) -> bytes | None:
        if not text or "text_output" not in self._infer.outputs:
            return None
        response = self._response({"text_output": [text]})
        response.parameters[FINAL].bool_param = False
        return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()

    def _whole(self) -> pb.ModelInferResponse:
        answers = range(self._infer.choices)
        if self._usage is None or any(answer not in self._reasons for answer in answers):
            raise InternalError("the answer ended without a Completed event")
        return self._response(
            {
                "text_output": [self._text(answer) for answer in answers],
                "finish_reason": [FINISH_REASONS[self._reasons[answer]] for answer in answers],
                "num_input_tokens": [self._usage.prompt_tokens],
                "num_output_tokens": [self._usage.output_tokens],
            }
        )

    def _text(self, answer: int) -> str:
        prompt = self._infer.prompt_of(answer) if self._infer.with_prompt else ""
        return prompt + "".join(self._texts[answer])

    def _response(self, values: dict[str, Values]) -> pb.ModelInferResponse:
        infer = self._infer
        response = pb.ModelInferResponse(model_name=infer.model, model_version=self._revision, id=infer.id)
        for name in infer.outputs:
            if name in values:
                add_tensor(response, name, values[name], is_raw=infer.is_raw)
        return response


def encode_stream_failure(message: pb.ModelInferRequest, error: Llama31Error, request_id: str) -> bytes:
    """The last message for a request that failed, with what the trailing status of a call of its own would say."""
    response = pb.ModelInferResponse(model_name=message.model_name[:256], id=message.id[:256])
    parameters, row = response.parameters, status_row(error)
    parameters[FINAL].bool_param = True
    parameters["error_code"].int64_param = row.grpc_code.value[0]
    parameters["error_reason"].string_param = error.reason
    parameters["request_id"].string_param = request_id
    delay_s = retry_delay_s(error)
    if delay_s is not None:
        parameters["retry_after_ms"].int64_param = round(delay_s * 1000)
    return pb.ModelStreamInferResponse(error_message=public_text(error), infer_response=response).SerializeToString()


def encode_live(is_live: bool) -> bytes:
    """A `ServerLiveResponse`."""
    return pb.ServerLiveResponse(live=is_live).SerializeToString()


def encode_server_ready(is_ready: bool) -> bytes:
    """A `ServerReadyResponse`."""
    return pb.ServerReadyResponse(ready=is_ready).SerializeToString()


def encode_model_ready(is_ready: bool) -> bytes:
    """A `ModelReadyResponse`."""
    return pb.ModelReadyResponse(ready=is_ready).SerializeToString()


def encode_server_metadata(version: str) -> bytes:
    """A `ServerMetadataResponse`."""
    return pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS).SerializeToString()


def encode_model_metadata(model: ModelStatus) -> bytes:
    """A `ModelMetadataResponse`."""
    metadata = pb.ModelMetadataResponse(name=model.name, versions=[model.revision], platform=SERVER_NAME)
    describe_tensors(metadata)
    return metadata.SerializeToString()
