from llama31.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class BuiltinTool(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUILTIN_TOOL_UNSPECIFIED: _ClassVar[BuiltinTool]
    BUILTIN_TOOL_SEARCH: _ClassVar[BuiltinTool]
    BUILTIN_TOOL_MATH: _ClassVar[BuiltinTool]
    BUILTIN_TOOL_CODE: _ClassVar[BuiltinTool]

class ToolPromptFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOOL_PROMPT_FORMAT_UNSPECIFIED: _ClassVar[ToolPromptFormat]
    TOOL_PROMPT_FORMAT_JSON: _ClassVar[ToolPromptFormat]
    TOOL_PROMPT_FORMAT_FUNCTION_TAG: _ClassVar[ToolPromptFormat]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
BUILTIN_TOOL_UNSPECIFIED: BuiltinTool
BUILTIN_TOOL_SEARCH: BuiltinTool
BUILTIN_TOOL_MATH: BuiltinTool
BUILTIN_TOOL_CODE: BuiltinTool
TOOL_PROMPT_FORMAT_UNSPECIFIED: ToolPromptFormat
TOOL_PROMPT_FORMAT_JSON: ToolPromptFormat
TOOL_PROMPT_FORMAT_FUNCTION_TAG: ToolPromptFormat

class Message(_message.Message):
    __slots__ = ("role", "parts", "tool_call_id")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    role: Role
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    tool_call_id: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., tool_call_id: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("text", "tool_call", "tool_result")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_FIELD_NUMBER: _ClassVar[int]
    TOOL_RESULT_FIELD_NUMBER: _ClassVar[int]
    text: str
    tool_call: ToolCall
    tool_result: ToolResult
    def __init__(self, text: _Optional[str] = ..., tool_call: _Optional[_Union[ToolCall, _Mapping]] = ..., tool_result: _Optional[_Union[ToolResult, _Mapping]] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments_json: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class ToolResult(_message.Message):
    __slots__ = ("content", "is_error")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    IS_ERROR_FIELD_NUMBER: _ClassVar[int]
    content: str
    is_error: bool
    def __init__(self, content: _Optional[str] = ..., is_error: _Optional[bool] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("function", "builtin")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    function: FunctionTool
    builtin: BuiltinTool
    def __init__(self, function: _Optional[_Union[FunctionTool, _Mapping]] = ..., builtin: _Optional[_Union[BuiltinTool, str]] = ...) -> None: ...

class FunctionTool(_message.Message):
    __slots__ = ("name", "description", "parameters_json_schema", "strict")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters_json_schema: str
    strict: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters_json_schema: _Optional[str] = ..., strict: _Optional[bool] = ...) -> None: ...

class ToolPolicy(_message.Message):
    __slots__ = ("mode", "function_name", "parallel")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[ToolPolicy.Mode]
        MODE_AUTO: _ClassVar[ToolPolicy.Mode]
        MODE_NONE: _ClassVar[ToolPolicy.Mode]
        MODE_REQUIRED: _ClassVar[ToolPolicy.Mode]
    MODE_UNSPECIFIED: ToolPolicy.Mode
    MODE_AUTO: ToolPolicy.Mode
    MODE_NONE: ToolPolicy.Mode
    MODE_REQUIRED: ToolPolicy.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_NAME_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    mode: ToolPolicy.Mode
    function_name: str
    parallel: bool
    def __init__(self, mode: _Optional[_Union[ToolPolicy.Mode, str]] = ..., function_name: _Optional[str] = ..., parallel: _Optional[bool] = ...) -> None: ...

class ChatSpec(_message.Message):
    __slots__ = ("model", "messages", "tools", "tool_policy", "sampling", "stop", "constraint", "returns", "service", "continuation", "date", "tool_prompt_format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_POLICY_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    DATE_FIELD_NUMBER: _ClassVar[int]
    TOOL_PROMPT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    tool_policy: ToolPolicy
    sampling: _common_pb2.SamplingOptions
    stop: _common_pb2.StopOptions
    constraint: _common_pb2.OutputConstraint
    returns: _common_pb2.ReturnOptions
    service: _common_pb2.ServiceOptions
    continuation: _common_pb2.Continuation
    date: str
    tool_prompt_format: ToolPromptFormat
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., tool_policy: _Optional[_Union[ToolPolicy, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingOptions, _Mapping]] = ..., stop: _Optional[_Union[_common_pb2.StopOptions, _Mapping]] = ..., constraint: _Optional[_Union[_common_pb2.OutputConstraint, _Mapping]] = ..., returns: _Optional[_Union[_common_pb2.ReturnOptions, _Mapping]] = ..., service: _Optional[_Union[_common_pb2.ServiceOptions, _Mapping]] = ..., continuation: _Optional[_Union[_common_pb2.Continuation, _Mapping]] = ..., date: _Optional[str] = ..., tool_prompt_format: _Optional[_Union[ToolPromptFormat, str]] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: ChatSpec
    def __init__(self, spec: _Optional[_Union[ChatSpec, _Mapping]] = ...) -> None: ...

class ChatResponse(_message.Message):
    __slots__ = ("response_id", "model", "model_revision", "choices", "usage", "safety")
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SAFETY_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    model: str
    model_revision: str
    choices: _containers.RepeatedCompositeFieldContainer[ChatChoice]
    usage: _common_pb2.Usage
    safety: _containers.RepeatedCompositeFieldContainer[_common_pb2.SafetyVerdict]
    def __init__(self, response_id: _Optional[str] = ..., model: _Optional[str] = ..., model_revision: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[ChatChoice, _Mapping]]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., safety: _Optional[_Iterable[_Union[_common_pb2.SafetyVerdict, _Mapping]]] = ...) -> None: ...

class ChatChoice(_message.Message):
    __slots__ = ("index", "message", "finish_reason", "matched_stop", "tokens")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    index: int
    message: Message
    finish_reason: _common_pb2.FinishReason
    matched_stop: str
    tokens: _common_pb2.TokenColumns
    def __init__(self, index: _Optional[int] = ..., message: _Optional[_Union[Message, _Mapping]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., matched_stop: _Optional[str] = ..., tokens: _Optional[_Union[_common_pb2.TokenColumns, _Mapping]] = ...) -> None: ...

class StreamChatRequest(_message.Message):
    __slots__ = ("spec", "resumable")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    spec: ChatSpec
    resumable: bool
    def __init__(self, spec: _Optional[_Union[ChatSpec, _Mapping]] = ..., resumable: _Optional[bool] = ...) -> None: ...

class StreamChatResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: ChatEvent
    def __init__(self, event: _Optional[_Union[ChatEvent, _Mapping]] = ...) -> None: ...

class ChatEvent(_message.Message):
    __slots__ = ("sequence", "started", "waiting", "delta", "choice_done", "completed", "checkpoint")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    CHOICE_DONE_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    started: Started
    waiting: Waiting
    delta: Delta
    choice_done: ChoiceDone
    completed: Completed
    checkpoint: bytes
    def __init__(self, sequence: _Optional[int] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., choice_done: _Optional[_Union[ChoiceDone, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("response_id", "model", "model_revision", "prompt_tokens", "prompt", "seed")
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    model: str
    model_revision: str
    prompt_tokens: int
    prompt: _common_pb2.TokenColumns
    seed: int
    def __init__(self, response_id: _Optional[str] = ..., model: _Optional[str] = ..., model_revision: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., prompt: _Optional[_Union[_common_pb2.TokenColumns, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("queue_position", "prefilled_tokens")
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queue_position: int
    prefilled_tokens: int
    def __init__(self, queue_position: _Optional[int] = ..., prefilled_tokens: _Optional[int] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("choice", "text", "tool_calls", "tokens")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    choice: int
    text: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCallDelta]
    tokens: _common_pb2.TokenColumns
    def __init__(self, choice: _Optional[int] = ..., text: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCallDelta, _Mapping]]] = ..., tokens: _Optional[_Union[_common_pb2.TokenColumns, _Mapping]] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "id", "name", "arguments_json_fragment")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    arguments_json_fragment: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json_fragment: _Optional[str] = ...) -> None: ...

class ChoiceDone(_message.Message):
    __slots__ = ("choice", "finish_reason", "matched_stop")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    choice: int
    finish_reason: _common_pb2.FinishReason
    matched_stop: str
    def __init__(self, choice: _Optional[int] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., matched_stop: _Optional[str] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("usage", "safety")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SAFETY_FIELD_NUMBER: _ClassVar[int]
    usage: _common_pb2.Usage
    safety: _containers.RepeatedCompositeFieldContainer[_common_pb2.SafetyVerdict]
    def __init__(self, usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ..., safety: _Optional[_Iterable[_Union[_common_pb2.SafetyVerdict, _Mapping]]] = ...) -> None: ...
