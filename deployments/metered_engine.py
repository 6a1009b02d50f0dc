"""What does each step of an engine cost, and which sequence is charged for it? An engine around the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster.policy import StepSpeed
from deployments.policies.charging import Charge, SharedCost
from deployments.policies.step_fit import StepFit
from deployments.power import PowerMeter
from llama31.block_table import BlockTable
from llama31.chat import ResourceUse
from llama31.engine import Engine, EngineOutput, EngineRequest, EngineState, MeasuredStep, RankReport, RankVitals


class MeteredEngine:
    """Passes everything on; times the steps, and charges them once it has a power meter.

    Implements `llama31.engine.Engine`. The first and the last output of a sequence say what it was charged.
    """

    def __init__(
        self, engine: Engine, gpus: int, observe_step_s: Callable[[float], None], max_step_tokens: int = 8192
    ) -> None:
        self._engine = engine
        self._gpus = gpus
        self._observe_step_s = observe_step_s
        self._power: PowerMeter | None = None
        self._fit = StepFit(max_step_tokens)
        self._speed: StepSpeed | None = None
        self._cost = SharedCost()
        # Prompt tokens of sequences that have no output yet, and those that other replicas emitted.
        self._waiting: dict[str, int] = {}
        self._in_flight = 0
        self._busy_s = 0.0
        self._since_s = 0.0
        self._step_since_s = 0.0

    def charge_by(self, power: PowerMeter) -> None:
        """From now on steps are charged."""
        self._power = power

    def price(self) -> Charge:
        """What a sequence that took part in every step so far would have been charged."""
        return self._cost.total

    def speed(self) -> StepSpeed | None:
        """How long its steps take; None until enough are measured."""
        if steps := self._engine.take_steps():
            self._fit.add(steps)
            self._speed = self._fit.speed()
        return self._speed

    def busy_s(self) -> float:
        """Time in which there was work, since the start."""
        return self._busy_s + (_now_s() - self._since_s if self._in_flight else 0.0)

    async def start(self) -> None:
        """As the engine's."""
        await self._engine.start()

    def submit(self, request: EngineRequest) -> None:
        """As the engine's."""
        self._engine.submit(request)
        if not self._in_flight:
            self._since_s = self._step_since_s = _now_s()
        self._in_flight += 1
        self._waiting[request.request_id] = len(request.prompt_token_ids) + len(request.output_token_ids)

    def cancel(self, request_id: str) -> None:
        """As the engine's."""
        self._engine.cancel(request_id)

    async def next_step(self) -> list[EngineOutput]:
        """The engine's outputs, with charges."""
        outputs = await self._engine.next_step()
        now_s = _now_s()
        worked_s, self._since_s = now_s - self._since_s, now_s
        if not self._in_flight:
            return outputs
        self._busy_s += worked_s
        # Ends of cancelled sequences come between two steps.
        if any(output.tokens.ids for output in outputs):
            self._observe_step_s(now_s - self._step_since_s)
            self._step_since_s = now_s
        # Only the ends are looked at: most outputs of a step just carry a token.
        ended = [output for output in outputs if output.is_last]
        self._in_flight -= len(ended)
        begun = self._begun(outputs) if self._waiting else {}
        if self._power is not None:
            outputs = self._charge(outputs, worked_s, self._power, begun, ended)
        for output in ended:
            self._waiting.pop(output.request_id, None)
        return outputs

    def state(self) -> EngineState:
        """As the engine's."""
        return self._engine.state()

    def blocks(self) -> BlockTable | None:
        """As the engine's."""
        return self._engine.blocks()

    def take_steps(self) -> tuple[MeasuredStep, ...]:
        """As the engine's; `speed` takes them, too."""
        return self._engine.take_steps()

    def ranks(self) -> tuple[RankReport, ...]:
        """As the engine's."""
        return self._engine.ranks()

    def rank_vitals(self) -> tuple[RankVitals, ...]:
        """As the engine's."""
        return self._engine.rank_vitals()

    async def close(self) -> None:
        """As the engine's."""
        await self._engine.close()

    def _begun(self, outputs: Sequence[EngineOutput]) -> dict[str, int]:
        """Sequences with their first tokens in this step, and how many prompt tokens were computed for them."""
        begun = {}
        for output in outputs:
            if output.tokens.ids and (prompt_tokens := self._waiting.pop(output.request_id, None)) is not None:
                begun[output.request_id] = prompt_tokens - output.cached_prompt_tokens
        return begun

    def _charge(
        self,
        outputs: list[EngineOutput],
        worked_s: float,
        power: PowerMeter,
        begun: dict[str, int],
        ended: Sequence[EngineOutput],
    ) -> list[EngineOutput]:
        self._cost.charge_step(Charge(self._gpus * worked_s, power.busy_watts * worked_s), begun)
        told = {*begun, *(output.request_id for output in ended)}
        if not told:
            return outputs
        charged = {request_id: self._cost.charged(request_id) for request_id in told}
        self._cost.end(output.request_id for output in ended)
        return [
            replace(output, resources=ResourceUse(power.source, charge.accelerator_s, charge.joules))
            if (charge := charged.get(output.request_id)) is not None
            else output
            for output in outputs
        ]


def _now_s() -> float:
    return asyncio.get_running_loop().time()
