"""Which server, answer, client and accident does a case ask for?"""

from __future__ import annotations

import re
from typing import Any

from tests.bad_inputs.cases import Case, UnknownKey
from tests.bad_inputs.server import END_OF_TURN_ID, Needs, Server

# Settings that the catalogue's numbers were measured with.
CATALOGUE_MAX_STREAMS = 100
# Long enough that calls which start together overlap.
OVERLAP_TOKENS = 200
SLOW_OVERLAP_TOKENS = 5
SLOW_STEP_S = 0.4
MANY_CALLS = 100

CLIENTS = ("never reads", "SIGKILL after first chunk", "closes after first SSE event")
_KILLED = re.compile(r"engine killed after (\d+) chunks")
_LONG_ANSWER_KEYS = {"cancel_after_chunks", "client", "during", "h2_initial_window"}


def needs_of(case: Case) -> Needs:
    """The server of the case. Raises: UnknownKey."""
    case.check_keys()
    request = case.request
    changes: dict[str, Any] = {}
    if "client" in request and request["client"] not in CLIENTS:
        raise UnknownKey(f"{case.id}: the runner does not know the client {request['client']!r}")
    if "during" in request:
        changes |= _during(case, request["during"])
    if "server_capacity" in request:
        changes |= {"max_requests": request["server_capacity"], "step_s": SLOW_STEP_S}
    if max(request.get(key, 0) for key in ("repeat", "concurrent", "unique_schemas")) >= MANY_CALLS:
        # Their clients share this process: a request may come long after its connection.
        changes["request_wait_s"] = 10.0
    if request.get("h2", {}).get("ignore_max_concurrent_streams"):
        changes["max_streams"] = CATALOGUE_MAX_STREAMS
    quotas = {
        # The tenants file counts by the minute; a burst within one second sees the same limit.
        "tenant_rps_limit": "requests_per_minute",
        "tenant_tokens_left": "tokens_per_minute",
        "tenant_concurrency_limit": "concurrent_requests",
    }
    for key, name in quotas.items():
        if key in request:
            changes |= {name: request[key], "is_spent_afterwards": True}
    if "tls" in request:
        changes["tls"] = True
    return Needs(**changes)


def _during(case: Case, text: str) -> dict[str, Any]:
    if _KILLED.fullmatch(text):
        return {"replicas": 2, "is_spent_afterwards": True}
    if "drain" in text:
        return {"is_spent_afterwards": True}
    if "no ready replica" in text or "loading" in text:
        return {"replicas": 0, "is_spent_afterwards": True}
    raise UnknownKey(f"{case.id}: the runner does not know the situation {text!r}")


def chunks_until_kill(case: Case) -> int | None:
    """After how many pieces of the answer the engine dies."""
    match = _KILLED.fullmatch(case.request.get("during", ""))
    return int(match[1]) if match else None


def prepare(case: Case, server: Server) -> None:
    """Tells the engine what to answer."""
    request, tokenizer = case.request, server.codec.tokenizer
    server.play.reset()
    if "model_output" in request:
        server.play.ids = (*_with_specials(request["model_output"], server), END_OF_TURN_ID)
    elif _LONG_ANSWER_KEYS & set(request):
        server.play.is_endless = True
    elif {"repeat", "concurrent"} & set(request) and "tenant_rps_limit" not in request:
        words = SLOW_OVERLAP_TOKENS if "server_capacity" in request else OVERLAP_TOKENS
        server.play.ids = (*tokenizer.encode(" hello" * words), END_OF_TURN_ID)


_SPECIALS = {"<|python_tag|>": 128010, "<|eom_id|>": 128008, "<|eot_id|>": 128009}


def _with_specials(text: str, server: Server) -> list[int]:
    """A model puts out control tokens as such."""
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, _SPECIALS)) + ")", text):
        ids += [_SPECIALS[piece]] if piece in _SPECIALS else server.codec.tokenizer.encode(piece)
    return ids
