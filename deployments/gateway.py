"""The transport-free path of one request: encode, route, stream, stop, account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

from cluster.policy import RouterPolicy
from deployments.admission import Admission, Ticket
from deployments.answer import Answer
from deployments.call import Call, ModelStatus, ReplicaStatus
from deployments.choices import ChoiceRun, Job, interleaved, total_usage, used_tokens
from deployments.config import ServiceConfig
from deployments.continuation import ContinuingStream
from deployments.demand import DemandCounter
from deployments.fleet import Fleet
from deployments.in_flight import InFlight
from deployments.metrics import Metrics
from deployments.model_checks import check_ids
from deployments.policies.admission import FairAdmission
from deployments.preparation import Preparation
from deployments.request_log import log_labelled
from deployments.room import EngineBounds, Room
from deployments.router import Router
from deployments.sequence_stream import Loss
from deployments.tenancy import Tenancy, Visit
from deployments.tenant import LOCAL, Tenant
from deployments.tracing import AnswerSpan, Tracing
from llama31.chat import (
    ChatRequest,
    Completed,
    CompletionRequest,
    Event,
    ResourceUse,
    Started,
    TokenColumns,
    sum_resources,
)
from llama31.codec import ModelCodec
from llama31.engine import EngineOutput, EngineRequest
from llama31.errors import (
    InternalError,
    Llama31Error,
    ModelNotFound,
)


class ServiceGateway:
    """Serves one model. Implements `deployments.call.Gateway`."""

    def __init__(
        self,
        config: ServiceConfig,
        codec: ModelCodec,
        fleet: Fleet,
        policy: RouterPolicy,
        metrics: Metrics,
        tenancy: Tenancy | None = None,
        tracing: Tracing | None = None,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`share` is what this ingress holds of the fleet's room."""
        self._config = config
        self._spec = config.spec
        self._codec = codec
        self._fleet = fleet
        self._router = Router(config.model, fleet, policy, metrics)
        self._metrics = metrics
        self._ttft = metrics.child("llama31_ttft_seconds", model=config.model)
        self._inter_token = metrics.child("llama31_inter_token_seconds", model=config.model)
        self._queue_wait = metrics.child("llama31_queue_wait_seconds", model=config.model)
        self._continuation_gap = metrics.child("llama31_continuation_gap_seconds", model=config.model)
        self._footprint = config.energy.footprint if config.energy else None
        self._tenancy = tenancy or Tenancy(metrics)
        self._tracing = tracing
        self._in_flight = InFlight(config.ingress.max_requests)
        bounds = EngineBounds(config.engine.max_running, config.engine.max_batched_tokens)
        room = Room(fleet, bounds, share, starts_on_demand=config.autoscaling is not None)
        self.admission = Admission(
            config.model, room, metrics, FairAdmission(config.ingress.hold_s), config.late_after_s
        )
        self.demand = DemandCounter(self._in_flight, self.admission, self._router.backlog_s)
        self._preparation = Preparation(config, codec, self._tenancy, self._router, self.demand)

    def chat(self, request: ChatRequest, call: Call) -> AsyncGenerator[Event, None]:
        """Answers a dialog."""
        return self._serve("chat", request, call)

    def complete(self, request: CompletionRequest, call: Call) -> AsyncGenerator[Event, None]:
        """Goes on with a text."""
        return self._serve("complete", request, call)

    @asynccontextmanager
    async def hold(self, call: Call, prompts: int = 0) -> AsyncIterator[tuple[Call, ...]]:
        """Keeps the id of a call with several prompts; so many of them are counted in at once."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._in_flight.held(call))
                await self._tenancy.prepare(call.tenant, prompts=prompts)
                visits = stack.enter_context(self._tenancy.entered(call.tenant, prompts)) if prompts else ()
            except Llama31Error as error:
                self._count("complete", error.reason)
                raise
            yield tuple(call.part(index, visit) for index, visit in enumerate(visits))

    def models(self) -> tuple[ModelStatus, ...]:
        """The one model, with what its replicas say."""
        config, spec = self._config, self._spec
        status = ModelStatus(
            name=config.model,
            revision=config.engine.dtype,
            state=self._fleet.state(),
            context_tokens=config.engine.max_model_tokens,
            max_output_tokens=config.engine.max_model_tokens - 1,
            languages=spec.languages,
            quantization=spec.quantization,
            tensor_parallel=config.parallel_plan.tp,
            pipeline_parallel=config.parallel_plan.pp,
            ready_replicas=self._fleet.ready_replicas(),
        )
        return (status,)

    def fleet(self) -> tuple[ReplicaStatus, ...]:
        """What replicas announced, with what their links know."""
        loads = {snapshot.replica_id: snapshot for snapshot in self._fleet.snapshots()}
        return tuple(
            ReplicaStatus(
                replica_id=record.replica_id,
                model=record.model,
                plan=record.plan,
                phase=record.phase,
                detail=record.detail,
                ranks=record.ranks,
                load=loads.get(record.replica_id),
            )
            for record in self._fleet.records()
        )

    @asynccontextmanager
    async def visit(self, tenant: Tenant) -> AsyncIterator[None]:
        """One more request of the tenant, which takes no tokens."""
        await self._tenancy.prepare(tenant, prompts=1)
        visit = self._tenancy.enter(tenant)
        try:
            yield
        finally:
            visit.leave(0, needs_replica=False)

    def tokenize(self, model: str, text: str, add_special_tokens: bool) -> list[int]:
        """Content only, or as a completion prompt with what the model wants before it."""
        self._check_model(model)
        return self._codec.prompt.encode_completion(text) if add_special_tokens else self._codec.tokenizer.encode(text)

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes:
        """The bytes of a run of ids, control tokens as their names."""
        self._check_model(model)
        check_ids("ids", ids, self._spec)
        return self._codec.tokenizer.decode_bytes(ids)

    @property
    def models_version(self) -> int:
        """Grows with every change of the fleet."""
        return self._fleet.version

    async def wait_models_changed(self, seen_version: int) -> int:
        """Waits for the fleet to change."""
        return await self._fleet.wait_changed(seen_version)

    async def _serve(
        self, method: str, request: ChatRequest | CompletionRequest, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Counts the request in and out, whatever happens between."""
        self._let_in(method, request.model, call)
        outcome = ""
        span: AnswerSpan | None = None
        visit: Visit | None = None
        job: Job | None = None
        ticket: Ticket | None = None
        answers: list[Answer] = []
        try:
            if self._tracing is not None:
                span = self._tracing.answer(method, self._config.model)
            call.tenant.check_options(request.options)
            if call.visit is None:
                await self._tenancy.prepare(call.tenant, prompts=1)
            visit = call.visit or self._tenancy.enter(call.tenant)
            prepared = await self._preparation.job(request, call, visit)
            ticket = await self.admission.enter(prepared)
            job = replace(prepared, progress=ticket.progress)
            if span is not None:
                job = span.admitted(job)
            answers = [self._answer(request, job, index) for index in range(job.options.num_choices)]
            async with aclosing(self._generate(job, answers)) as events:
                async for event in events:
                    yield event
            outcome = answers[0].finish_reason.name
        except Llama31Error as error:
            outcome = error.reason
            raise
        except Exception:
            outcome = InternalError.reason
            raise
        finally:
            outcome = outcome or call.closing.reason
            tokens = used_tokens(job, answers, outcome)
            if ticket is not None:
                ticket.leave(sum(answer.output_tokens for answer in answers))
            if visit is not None:
                visit.leave(tokens)
            log_labelled(request, call, outcome, tokens)
            self._in_flight.leave(call)
            self._metrics.set("llama31_streams_open", len(self._in_flight), model=self._config.model)
            self._count(method, outcome)
            if span is not None:
                span.end(outcome, answers)

    def _let_in(self, method: str, model: str, call: Call) -> None:
        """Raises: ModelNotFound, DuplicateRequest, Overloaded."""
        try:
            self._check_model(model, call.tenant)
            self._in_flight.enter(call)
        except Llama31Error as error:
            self._count(method, error.reason)
            raise
        self._metrics.set("llama31_streams_open", len(self._in_flight), model=self._config.model)

    def _count(self, method: str, outcome: str) -> None:
        self._metrics.add("llama31_requests_total", model=self._config.model, method=method, outcome=outcome)

    def _answer(self, request: ChatRequest | CompletionRequest, job: Job, choice: int) -> Answer:
        parser = None
        if isinstance(request, ChatRequest):
            id_seed = f"{job.request.request_id}/{choice}"
            parser = self._codec.tool_parser(request.tools, request.tool_policy, id_seed)
        limited = job.is_limited_by_context
        return Answer(self._codec, job.options, self._spec.stop_token_ids, limited, choice, parser)

    async def _generate(self, job: Job, answers: list[Answer]) -> AsyncGenerator[Event, None]:
        """Streams every choice from its replica."""
        runs: list[ChoiceRun] = []
        try:
            for index, answer in enumerate(answers):
                runs.append(ChoiceRun(job, index, answer, self._start, self._observe))
            # The usual single choice saves a layer that every token would pass.
            async with aclosing(runs[0].events() if len(runs) == 1 else interleaved(runs)) as events:
                held = await _until_scored(events, runs[0]) if job.scores_prompt else ()
                yield self._started(job, runs[0])
                for event in held:
                    yield event
                async for event in events:
                    yield event
        finally:
            for run in runs:
                run.stream.cancel()
            # Also a request that failed or that nobody waits for has used energy.
            resources = self._charge(job.call.tenant, runs)
        usage = total_usage(runs, job, _now_s(), resources)
        self.demand.answer(usage.output_tokens)
        self._metrics.add("llama31_prompt_tokens_total", usage.prompt_tokens, model=self._config.model)
        self._metrics.add("llama31_output_tokens_total", usage.output_tokens, model=self._config.model)
        yield Completed(usage)

    def _observe(self, answer: Answer, output: EngineOutput, arrived_s: float) -> None:
        if not output.tokens.ids:
            return
        now_s = _now_s()
        if answer.last_token_s is None:
            answer.first_token_s = now_s
            self._ttft.observe(now_s - arrived_s)
            self._queue_wait.observe(max(0.0, now_s - arrived_s - output.prefill_s))
        else:
            gap_s = (now_s - answer.last_token_s) / len(output.tokens.ids)
            self._inter_token.observe(gap_s)
        answer.last_token_s = now_s

    def _start(self, job: Job, request: EngineRequest) -> ContinuingStream:
        return ContinuingStream(
            request,
            partial(self._router.submit, job),
            self._router.wait_changed,
            self._config.ingress.continue_within_s,
            self._count_loss,
            self._continuation_gap.observe,
        )

    def _count_loss(self, loss: Loss) -> None:
        self._metrics.add("llama31_interrupted_total", model=self._config.model, cause=loss)

    def _charge(self, tenant: Tenant, runs: Sequence[ChoiceRun]) -> ResourceUse | None:
        used = sum_resources(run.stream.resources() for run in runs)
        if used is None or self._footprint is None:
            return None
        used = replace(used, co2e_grams=self._footprint.co2e_grams(used.joules))
        self._tenancy.count_energy(tenant, used)
        return used

    def _started(self, job: Job, run: ChoiceRun) -> Started:
        ids = tuple(job.request.prompt_token_ids)
        asked = TokenColumns(ids) if job.options.returns.prompt_token_ids else None
        return Started(
            response_id=job.request.request_id,
            model=self._config.model,
            model_revision=self._config.engine.dtype,
            replica_id=run.stream.replica_id,
            prompt_tokens=len(ids),
            seed=job.request.sampling.seed,
            prompt=run.prompt or asked,
            warnings=job.warnings,
        )

    def _check_model(self, model: str, tenant: Tenant = LOCAL) -> None:
        known = (self._config.model,) if tenant.may_use(self._config.model) else ()
        if model not in known:
            raise ModelNotFound(model, known)


async def _until_scored(events: AsyncGenerator[Event, None], run: ChoiceRun) -> list[Event]:
    """The events up to those that came with the prompt's scores, which belong before all of them."""
    held: list[Event] = []
    async for event in events:
        held.append(event)
        if run.prompt is not None:
            break
    return held


def _now_s() -> float:
    return asyncio.get_running_loop().time()
