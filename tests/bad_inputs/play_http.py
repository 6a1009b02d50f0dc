"""How is a case played to the HTTP port, in the situation that it asks for?"""

from __future__ import annotations

from tests.bad_inputs import http_calls, raw_connections, situations
from tests.bad_inputs.cases import Case, UnknownKey
from tests.bad_inputs.openai_requests import http_request, with_schema
from tests.bad_inputs.server import Server
from tests.bad_inputs.verdict import Seen


async def play(case: Case, server: Server) -> list[Seen]:
    """Sends what the case says. Raises: UnknownKey."""
    request = case.request
    if "raw_tcp_hex" in request:
        return [await raw_connections.speak_tcp(case, server, server.http_port)]
    sent = http_request(case, server)
    if "tls" in request:
        return [await other_tls(case, server)]
    client = str(request.get("client", ""))
    if client == "never reads":
        return [await http_calls.never_reads(server, sent)]
    if client or "cancel_after_chunks" in request:
        return [await http_calls.gone_after_first_event(server, sent)]
    if "unique_schemas" in request:
        varied = [http_request(with_schema(case, number), server) for number in range(request["unique_schemas"])]
        return await http_calls.many(server, varied)
    if "repeat" in request or "concurrent" in request:
        return await http_calls.many(server, [sent] * (request.get("repeat") or request["concurrent"]))
    if (chunks := situations.chunks_until_kill(case)) is not None:
        return [await http_calls.killed_engine(server, sent, chunks)]
    if "drain" in request.get("during", ""):
        await server.web.drain(0)
    return [await http_calls.once(server, sent)]


async def other_tls(case: Case, server: Server) -> Seen:
    """A client without TLS, or with a certificate of somebody else."""
    assert server.certificates is not None
    sent = http_request(case, server)
    match case.request["tls"]:
        case "plaintext-to-tls-port":
            return await http_calls.once(server, sent)
        case "client-cert-from-other-CA":
            return await http_calls.once(server, sent, server.certificates.client_context(is_foreign=True))
        case kind:
            raise UnknownKey(f"{case.id}: the runner does not know the TLS client {kind!r}")
