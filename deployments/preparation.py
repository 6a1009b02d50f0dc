"""What does a request become before it waits for its turn? A prompt, every default resolved, and a charged tenant."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from deployments.call import Call
from deployments.choices import Job
from deployments.config import ServiceConfig
from deployments.constraint_check import ConstraintCheck, asked_of
from deployments.demand import DemandCounter
from deployments.model_checks import check_ids, check_options, constraint_of, resolve_sampling
from deployments.router import Router
from deployments.tenancy import Tenancy, Visit
from llama31.chat import ChatRequest, CompletionRequest
from llama31.codec import ModelCodec
from llama31.engine import EngineRequest, Limits
from llama31.errors import ContextTooLong
from llama31.prompt import dialog_chars
from llama31.tools import offered_tools

# Prompts above this are encoded in a thread, so that one long prompt does not hold up every stream.
ENCODE_IN_THREAD_CHARS = 20_000


class Preparation:
    """Makes the jobs of one model."""

    def __init__(
        self, config: ServiceConfig, codec: ModelCodec, tenancy: Tenancy, router: Router, demand: DemandCounter
    ) -> None:
        self._config = config
        self._spec = config.spec
        self._codec = codec
        self._tenancy = tenancy
        self._router = router
        self._demand = demand
        self._constraints = ConstraintCheck()

    async def job(self, request: ChatRequest | CompletionRequest, call: Call, visit: Visit) -> Job:
        """Encodes the prompt, resolves every default and charges the tenant.

        Raises: ContextTooLong, InvalidRequest, LanguageRefused, Overloaded, QuotaExceeded.
        """
        arrived_s = asyncio.get_running_loop().time()
        constraint = constraint_of(request)
        await self._constraints.check(asked_of(request, constraint), call.tenant.name)
        prompt = await self._encode(request)
        self._demand.arrive(len(prompt))
        languages, tokenizer = self._spec.languages, self._codec.tokenizer
        warnings = await self._tenancy.check_language(call.tenant, request, languages, tokenizer)
        options = request.options
        check_options(options, len(prompt), self._spec)
        room = self._config.engine.max_model_tokens - len(prompt)
        wanted = options.stop.max_output_tokens
        if room < 1 or (wanted or 1) > room:
            raise ContextTooLong(len(prompt), wanted or 1, self._config.engine.max_model_tokens)
        default = self._config.ingress.max_output_tokens
        limit_tokens = wanted or min(default, room)
        most_tokens = len(prompt) + limit_tokens * options.num_choices
        await self._tenancy.prepare(call.tenant, tokens=most_tokens)
        visit.reserve(most_tokens)
        stop_ids = () if options.stop.ignore_eos else self._spec.stop_token_ids
        returns, salt = options.returns, self._tenancy.cache_salt(call.tenant)
        return Job(
            call=call,
            options=options,
            arrived_s=arrived_s,
            is_limited_by_context=wanted is None and room <= default,
            warnings=warnings,
            blocks=await self._router.blocks_of(prompt, salt),
            request=EngineRequest(
                request_id=f"{call.request_id}-{secrets.token_hex(8)}",
                prompt_token_ids=tuple(prompt),
                sampling=resolve_sampling(options, self._spec),
                limits=Limits(
                    max_output_tokens=limit_tokens,
                    min_output_tokens=min(options.stop.min_output_tokens, limit_tokens),
                    stop_token_ids=(*stop_ids, *options.stop.stop_token_ids),
                    ignore_eos=options.stop.ignore_eos,
                ),
                top_logprobs=returns.top_logprobs if returns.logprobs else None,
                priority=call.tenant.priority_of(options).value,
                cache_salt=salt,
                constraint=constraint,
                prompt_top_logprobs=returns.prompt_top_logprobs,
            ),
        )

    async def _encode(self, request: ChatRequest | CompletionRequest) -> Sequence[int]:
        if isinstance(request, CompletionRequest):
            if not isinstance(request.prompt, str):
                check_ids("spec.tokens.ids", request.prompt, self._spec)
                return request.prompt
            if len(request.prompt) <= ENCODE_IN_THREAD_CHARS:
                return self._codec.prompt.encode_completion(request.prompt)
            return await asyncio.to_thread(self._codec.prompt.encode_completion, request.prompt)
        offered = offered_tools(request.tools, request.tool_policy)
        parts = (request.messages, request.date, offered, request.tool_prompt_format)
        if dialog_chars(request.messages, offered) <= ENCODE_IN_THREAD_CHARS:
            return self._codec.prompt.encode_dialog(*parts)
        return await asyncio.to_thread(self._codec.prompt.encode_dialog, *parts)
