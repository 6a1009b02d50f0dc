"""Which service do the boards look at here? The stand-in on real engines, with everything on that metrics tell of."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certificates import Authority, install

from deployments.client import Client
from deployments.client_access import Tls
from deployments.tenants_file import make_key
from llama31.chat import GenerationOptions, SamplingChoices, StopChoices
from llama31.errors import Llama31Error

MODEL = "smollm2-135m"
# Cached with every question, and long enough for prefix blocks.
PREAMBLE = "You answer briefly. " + "These words are the same for everybody. " * 12
CALLERS = 6
REST_S = 1.0


@dataclass(frozen=True)
class Equipment:
    """Files for keys and TLS, and the configuration that names them."""

    overrides: dict[str, Any]
    key: str
    limited_key: str
    tls: Tls
    tenants_file: Path


def equip(directory: Path) -> Equipment:
    """Two tenants, one with a limit that is soon met; a certificate that ends today; power as an envelope."""
    authority = Authority("ours")
    certificate, key_pem = authority.issue()
    install(directory, cert=certificate, key=key_pem, ca=authority.pem)
    free, limited = make_key(), make_key()
    tenants = directory / "tenants.yaml"
    tenants.write_text(
        f'tenants:\n  search:\n    keys: [{{id: "{free.id}", sha256: "{free.sha256}"}}]\n'
        f'  trial:\n    requests_per_minute: 20\n    keys: [{{id: "{limited.id}", sha256: "{limited.sha256}"}}]\n'
    )
    overrides = {
        "ingress.auth": {"tenants_file": str(tenants)},
        "ingress.tls": {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")},
        "ingress.language": {"mode": "warn"},
        "ingress.show_tenant_names": True,
        # Of a made-up board, so that there is something to show; a figure on a picture, not a measurement.
        "energy": {"idle_watts": 20.0, "peak_watts": 60.0},
        # It decides, and always the same.
        "autoscaling": {
            "min_replicas": 1,
            "max_replicas": 1,
            "prompt_tokens_per_s": 1e6,
            "output_tokens_per_s": 1e6,
        },
    }
    return Equipment(overrides, free.key, limited.key, Tls(str(directory / "ca.pem")), tenants)


async def keep_busy(address: str, equipment: Equipment, duration_s: float) -> None:
    """Callers of both tenants, one question after the other, and somebody without a valid key."""
    until_s = time.monotonic() + duration_s
    async with (
        Client(address, api_key=equipment.key, tls=equipment.tls) as search,
        Client(address, api_key=equipment.limited_key, tls=equipment.tls) as trial,
        Client(address, api_key="l31_wrong", tls=equipment.tls) as stranger,
    ):
        callers = [*[search] * CALLERS, trial, stranger]
        await asyncio.gather(*(_ask_until(client, who, until_s) for who, client in enumerate(callers)))


async def _ask_until(client: Client, who: int, until_s: float) -> None:
    for turn in itertools.count():
        if time.monotonic() > until_s:
            return
        try:
            question = f"{PREAMBLE} What is {who} times {turn}?"
            options = GenerationOptions(
                sampling=SamplingChoices(temperature=0.0), stop=StopChoices(max_output_tokens=8 + 4 * who)
            )
            await client.chat(question, model=MODEL, options=options).text()
        except Llama31Error:
            # A limit or a wrong key, as it is meant; nobody hammers on.
            await asyncio.sleep(REST_S)
