"""The only module that imports vLLM: its engine core behind `core.Core`.

Not `AsyncLLM`: that makes text, an object and a queue for each request out of what the engine core
says once for a step, and all that is needed here is what it says. The pieces are those that
`AsyncLLM` is made of: `InputProcessor` checks a request, `EngineCoreClient` takes it to the core's
process and brings steps back.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import vllm
import zmq
import zmq.asyncio
from vllm import SamplingParams
from vllm.config import KVEventsConfig, KVTransferConfig, VllmConfig
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor import Executor

from workers.engine.chosen import Chosen
from workers.engine.commands import Grammar, Sampling
from workers.engine.vllm.core import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    CacheNews,
    CoreEnd,
    CoreFacts,
    CoreRequest,
    CoreRow,
    CoreStep,
)
from workers.engine.vllm.flags import FlagValue
from workers.engine.vllm.guard import guard, shared_memory, unpin

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput

_ENDS: Mapping[FinishReason, CoreEnd] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.REPETITION: "stop",
}
# What vLLM's proxies send to have a prompt's state kept for another worker.
_KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_TASKS = ("generate",)
# Mamba state, and what rounding to whole blocks takes.
_CPU_SLACK_BYTES = 64 * 2**20
# What is running has ended, or is given up: nothing to wait for.
_SHUTDOWN_S = 1.0


class VllmCore:
    """One vLLM engine in processes of its own. Owned by the event loop that opened it."""

    def __init__(
        self,
        flags: Mapping[str, FlagValue],
        args: Sequence[str],
        *,
        device: str,
        host: str,
        threads: int,
        lease_s: float,
    ) -> None:
        """Start vLLM and wait until it is up: seconds for a small model, minutes for a large one.

        Must be called with a running event loop. `args` are those of `vllm serve`, and go before
        `flags`. `lease_s`: how long vLLM keeps a state that nobody reads and no decode worker asks
        it to keep for longer. Raises ValueError for flags that vLLM does not take.
        """
        # Before anything of vLLM runs: a worker may be killed while it starts.
        guard()
        self._folder = Path(tempfile.mkdtemp(prefix="tandem-vllm-"))
        events = f"ipc://{self._folder}/events"
        _set_environment(host, device, threads)
        try:
            arguments = replace(
                _arguments(flags, args),
                disable_log_stats=False,
                kv_transfer_config=KVTransferConfig(
                    kv_connector="NixlConnector",
                    # Workers change their roles, and vLLM cannot be told of it.
                    kv_role="kv_both",
                    kv_buffer_device=device,
                    # Never that of an earlier start, whose agents others may still know.
                    engine_id=uuid.uuid4().hex,
                    # A state that cannot be read costs time, not the request.
                    kv_load_failure_policy="recompute",
                    kv_connector_extra_config={"kv_lease_duration": max(6, round(lease_s))},
                ),
                kv_events_config=KVEventsConfig(
                    enable_kv_cache_events=True, publisher="zmq", endpoint=events
                ),
            )
            config = arguments.create_engine_config()
        except (TypeError, AssertionError) as error:
            raise ValueError(f"vLLM {vllm.__version__} does not take its flags: {error}") from error
        if device == "cpu" and config.cache_config.kv_cache_memory_bytes is None:
            # Else vLLM reserves nearly all of the machine's memory, for each worker.
            blocks = config.cache_config.num_gpu_blocks_override or 1
            tokens = blocks * config.cache_config.block_size
            config.cache_config.kv_cache_memory_bytes = (
                round(tokens * _state_bytes_per_token(config)) + _CPU_SLACK_BYTES
            )
        self._events = zmq.asyncio.Context.instance().socket(zmq.SUB)
        self._events.connect(events)
        self._events.subscribe(b"")
        self._mamba_groups: set[int | None] = set()
        self._events_decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._inputs = InputProcessor(config)
        self._client = EngineCoreClient.make_async_mp_client(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=True,
            renderer=self._inputs.renderer,
        )
        if device == "cpu":
            unpin()
        self._config = config
        self._new: set[str] = set()  # no row of these was seen yet
        # Orders leave in the order in which they were given.
        self._orders: asyncio.Queue[EngineCoreRequest | str] = asyncio.Queue()
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._sender = asyncio.create_task(self._send_orders())

    @property
    def facts(self) -> CoreFacts:
        config, model = self._config, self._config.model_config
        cache, parallel = config.cache_config, config.parallel_config
        blocks, block_tokens = cache.num_gpu_blocks or 0, cache.block_size
        return CoreFacts(
            version=vllm.__version__,
            # One block of them holds nothing: vLLM's null block.
            kv_tokens=max(0, blocks - 1) * block_tokens * parallel.decode_context_parallel_size,
            block_tokens=block_tokens * parallel.decode_context_parallel_size,
            max_model_tokens=model.max_model_len,
            vocab_size=model.get_vocab_size(),
            state_bytes_per_token=_state_bytes_per_token(config),
            hybrid=model.is_hybrid,
        )

    def add(self, request: CoreRequest) -> None:
        """Check a request and send it to the core. Raises ValueError."""
        transfer = json.loads(request.transfer) if request.transfer else None
        made = self._inputs.process_inputs(
            request.name,
            {"type": "token", "prompt_token_ids": list(request.token_ids)},
            _sampling(request, _KEEP if request.keep else transfer),
            _TASKS,
            priority=request.priority,
            trace_headers={"traceparent": request.traceparent} if request.traceparent else None,
        )
        self._new.add(request.name)
        self._orders.put_nowait(made)

    def abort(self, name: str) -> None:
        self._new.discard(name)
        self._orders.put_nowait(name)

    def let_go(self, transfer: str) -> None:
        """Have the connector tell prefill's worker, by a request that ends before it begins."""
        self._orders.put_nowait(
            EngineCoreRequest(
                request_id=f"let-go-{uuid.uuid4().hex}",
                prompt_token_ids=[0],
                mm_features=None,
                sampling_params=SamplingParams(
                    max_tokens=1, extra_args={"kv_transfer_params": json.loads(transfer)}
                ),
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                abort_immediately=True,
            )
        )

    async def next_step(self) -> CoreStep:
        outputs = await self._client.get_output_async()
        stats = outputs.scheduler_stats
        if stats is None:
            return CoreStep(tuple([self._row(output) for output in outputs.outputs]))
        moved = stats.kv_connector_stats or {}
        return CoreStep(
            tuple([self._row(output) for output in outputs.outputs]),
            stats.kv_cache_usage,
            tuple(
                zip(
                    moved.get("bytes_transferred", ()),
                    moved.get("transfer_duration", ()),
                    strict=False,
                )
            ),
        )

    async def next_news(self) -> list[CacheNews]:
        _, _, payload = await self._events.recv_multipart()
        return [self._news(event) for event in self._events_decoder.decode(payload).events]

    async def wait_failed(self) -> BaseException:
        return await asyncio.shield(self._failed)

    async def aclose(self) -> None:
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)
        self._events.close(0)
        left = shared_memory()
        await asyncio.to_thread(self._client.shutdown, _SHUTDOWN_S)
        for path in left:
            path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _send_orders(self) -> None:
        try:
            while True:
                order = await self._orders.get()
                if isinstance(order, str):
                    await self._client.abort_requests_async([order])
                else:
                    await self._client.add_request_async(order)
        except Exception as error:  # noqa: BLE001 - whatever it was, vLLM cannot be told any more
            self._failed.set_result(error)

    def _news(self, event: object) -> CacheNews:
        match event:
            case BlockStored():
                # A removal says only of which group of layers it is.
                mamba = event.kv_cache_spec_kind == "mamba"
                if mamba:
                    self._mamba_groups.add(event.group_idx)
                return BlocksStored(
                    hashes=tuple(event.block_hashes),
                    parent=event.parent_block_hash,
                    token_ids=tuple(event.token_ids),
                    block_tokens=event.block_size,
                    mamba=mamba,
                )
            case BlockRemoved():
                return BlocksRemoved(
                    tuple(event.block_hashes), event.group_idx in self._mamba_groups
                )
        return CacheCleared()

    def _row(self, output: EngineCoreOutput) -> CoreRow:
        name, end = output.request_id, None
        cached_tokens = None
        if name in self._new:
            self._new.discard(name)
            if output.prefill_stats is not None:
                cached_tokens = output.prefill_stats.num_local_cached_tokens
        if output.finish_reason is not None:
            end = _ENDS.get(output.finish_reason, "error")
        drafted: tuple[int, ...] = ()
        accepted: tuple[int, ...] = ()
        steps = 0
        if output.spec_decode_metrics is not None:
            histogram = output.spec_decode_metrics.histogram
            steps = sum(histogram)
            # A position is drafted where all before it were accepted.
            reached = [sum(histogram[place:]) for place in range(len(histogram))]
            drafted, accepted = tuple(reached[:-1]), tuple(reached[1:])
        return CoreRow(
            name=name,
            chosen=_chosen(output),
            end=end,
            transfer=json.dumps(output.kv_transfer_params) if output.kv_transfer_params else "",
            cached_tokens=cached_tokens,
            drafted=drafted,
            accepted=accepted,
            steps=steps,
        )


def _state_bytes_per_token(config: VllmConfig) -> float:
    """Of KV, in all layers as if each had attention: what a hand-off moves at most."""
    model = config.model_config
    kept = 1 if model.use_mla else 2 * model.get_total_num_kv_heads()
    layers = model.get_total_num_hidden_layers()
    return float(layers * kept * model.get_head_size() * model.dtype.itemsize)


def _arguments(flags: Mapping[str, FlagValue], args: Sequence[str]) -> AsyncEngineArgs:
    """A user's arguments over ours. Raises ValueError for those that vLLM does not know."""
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.set_defaults(**flags)
    try:
        return AsyncEngineArgs.from_cli_args(parser.parse_args(list(args)))
    except SystemExit as error:
        raise ValueError(
            f"vllm.args {' '.join(args)}: vLLM {vllm.__version__} does not know these arguments; "
            "its own words are in the worker's log"
        ) from error


def _set_environment(host: str, device: str, threads: int) -> None:
    """What vLLM reads from the environment only, here and in the processes that it starts."""
    environment = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(_free_port(host)),
        "VLLM_NO_USAGE_STATS": "1",
        # A fork would copy the threads' locks of gRPC, and hold open what tells of our end.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if device == "cpu":
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    os.environ.update(environment)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _sampling(request: CoreRequest, transfer: Mapping[str, object] | None) -> SamplingParams:
    wanted: Sampling = request.sampling
    return SamplingParams(
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        repetition_penalty=wanted.repetition_penalty,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        # vLLM's are those of torch: 63 bits.
        seed=wanted.seed & (1 << 63) - 1 if wanted.temperature > 0.0 else None,
        stop_token_ids=sorted(wanted.stop_token_ids),
        ignore_eos=True,  # the end of a sequence is among the stop tokens, where it is wanted
        max_tokens=request.max_tokens,
        logprobs=wanted.top_logprobs if wanted.logprobs else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=_grammar(wanted.grammar),
        extra_args={"kv_transfer_params": dict(transfer)} if transfer is not None else None,
    )


def _grammar(grammar: Grammar | None) -> StructuredOutputsParams | None:
    if grammar is None:
        return None
    match grammar.kind:
        case "json_schema":
            return StructuredOutputsParams(json=grammar.text)
        case "regex":
            return StructuredOutputsParams(regex=grammar.text)
        case "json_object":
            return StructuredOutputsParams(json_object=True)


def _chosen(output: EngineCoreOutput) -> tuple[Chosen, ...]:
    if output.new_logprobs is None:
        return tuple([Chosen(token_id) for token_id in output.new_token_ids])
    ids, logprobs = output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs
    # The first column is the chosen token's; the best ones follow, that one among them or not.
    return tuple(
        [
            Chosen(
                token_id,
                float(logprobs[place][0]),
                tuple(
                    [
                        (int(other), float(logprob))
                        for other, logprob in zip(ids[place][1:], logprobs[place][1:], strict=True)
                    ]
                ),
            )
            for place, token_id in enumerate(output.new_token_ids)
        ]
    )
