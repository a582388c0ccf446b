"""Times the core: one decision is a request that arrives and is placed, its prefix looked up.

What comes after (the worker's answers, the end) is timed apart, and so is the hashing of a prompt,
which the router does once for each request before the core sees it.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from orchestrator.bench.placement.load import (
    BLOCK_TOKENS,
    Prompts,
    Settings,
    fill_index,
    join_workers,
    policy,
)
from orchestrator.bench.targets import Goal, Target, judged
from protos.tandem.v1 import common_pb2
from protos.tandem.v1.handoff_pb2 import HandoffTicket
from protos.tandem.v1.inference_pb2 import HandoffReport
from router.collector import collect_seldom
from router.core.events import (
    Ended,
    PrefillDone,
    RequestArrived,
    Reserved,
    StateArrived,
    TokensArrived,
)
from router.core.instructions import SendPrefill, SendReserve
from router.core.lifecycle import Lifecycle
from router.core.prefixes import PrefixKeys
from workers.compiled import is_compiled

_GOAL = Goal("placement decisions per second, 512 workers, 1,000,000 blocks", 20_000.0, "1/s")
_ROUNDS = 5
_BURST = 500  # requests that arrive at once
_CACHED_SHARE = 4  # one prompt of so many is one that was seen before
_OUTPUT_TOKENS = 64
_TICKET = HandoffTicket(reservation=1)
_HANDOFF = HandoffReport(kv_bytes=1 << 22, transfer_ms=1.0)


@dataclass(frozen=True, slots=True)
class Findings:
    """Medians over rounds, and each round for their spread.

    Decisions are per second of the core's own CPU time, which is what one core does when nobody
    else uses it; per second of the clock they are fewer where others do.
    """

    workers: int
    blocks: int
    prompt_tokens: int
    decisions_per_s: float
    rounds_per_s: tuple[float, ...]
    wall_decisions_per_s: float
    slowest_burst_us: float  # by the clock, for each decision in it
    hit_share: float  # of decisions that went where some of the prompt was cached
    request_us: float  # arrival to end without the decision, tokens in one batch
    hash_us: float  # of one prompt, processor time
    index_bytes_per_block: float
    core_compiled: bool  # by `python -m workers.compile`, else it is interpreted


def run(settings: Settings, report: Callable[[str], None]) -> Findings:
    """Fill the index, then decide; `report` is told what goes on."""
    lifecycle = Lifecycle(policy(settings))
    join_workers(lifecycle, settings)
    prompts = Prompts(settings)
    report(f"filling the index with {settings.blocks} blocks")
    gc.collect()
    before = psutil.Process(os.getpid()).memory_info().rss
    cached = fill_index(lifecycle, settings, prompts)
    gc.collect()
    grown = psutil.Process(os.getpid()).memory_info().rss - before
    kept = sum(8 * len(token_ids) for token_ids in cached)
    report(f"deciding {settings.decisions} times in each of {_ROUNDS} rounds")
    seen = cached[-1024:]
    keys: list[PrefixKeys] = []
    for number in range(4096):
        fresh = number % _CACHED_SHARE
        token_ids = prompts.new() if fresh else seen[number % len(seen)]
        keys.append(PrefixKeys.of(token_ids, BLOCK_TOKENS))
    hash_us = _hash_us(prompts)
    # As a router process does.
    thresholds = gc.get_threshold()
    collect_seldom()
    rounds = [_round(lifecycle, settings, keys, number) for number in range(_ROUNDS)]
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    index = lifecycle.book.index
    return Findings(
        workers=settings.workers,
        blocks=index.blocks,
        prompt_tokens=settings.prompt_tokens,
        decisions_per_s=statistics.median(one.per_cpu_s for one in rounds),
        rounds_per_s=tuple(one.per_cpu_s for one in rounds),
        wall_decisions_per_s=statistics.median(one.per_s for one in rounds),
        slowest_burst_us=statistics.median(one.slowest_us for one in rounds),
        hit_share=sum(one.hits for one in rounds) / (_ROUNDS * settings.decisions),
        request_us=statistics.median(one.rest_us for one in rounds),
        hash_us=hash_us,
        index_bytes_per_block=max(0, grown - kept) / max(1, index.blocks),
        core_compiled=is_compiled(),
    )


def targets(findings: Findings, full: bool) -> list[Target]:
    """One row for each target of the bench; a smaller run judges nothing."""
    unfit = None if full else "a smaller fleet or index than the target's"
    return [judged(_GOAL, findings.decisions_per_s, unfit=unfit)]


@dataclass(frozen=True, slots=True)
class _Decided:
    """Of one round."""

    per_cpu_s: float
    per_s: float
    slowest_us: float
    rest_us: float
    hits: int


def _hash_us(prompts: Prompts) -> float:
    several = [prompts.new() for _ in range(256)]
    began_s = time.thread_time()
    for token_ids in several:
        PrefixKeys.of(token_ids, BLOCK_TOKENS)
    return (time.thread_time() - began_s) / len(several) * 1e6


def _round(
    lifecycle: Lifecycle, settings: Settings, keys: list[PrefixKeys], number: int
) -> _Decided:
    """Bursts of requests: all of one arrive and are placed, then all are worked off."""
    cpu_s = wall_s = rest_s = 0.0
    slowest_us: list[float] = []
    hits, now_s = 0, 1.0 + number
    burst = min(_BURST, settings.workers, settings.decisions)
    for begin in range(0, settings.decisions, burst):
        names = [f"r{number}-{begin + one}" for one in range(burst)]
        events = [
            RequestArrived(
                name,
                settings.prompt_tokens,
                _OUTPUT_TOKENS,
                one & 1,
                prefix=keys[(begin + one) % len(keys)],
            )
            for one, name in enumerate(names)
        ]
        sent = []
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        for event in events:
            sent += lifecycle.handle(event, now_s)
        cpu_s += time.thread_time() - began_cpu_s
        elapsed_s = time.perf_counter() - began_s
        wall_s += elapsed_s
        slowest_us.append(elapsed_s / burst * 1e6)
        assert len(sent) == burst, "each request is placed at once"
        for name in names:
            chosen = lifecycle.requests[name].decisions[-1].chosen
            hits += chosen.uncached_tokens < settings.prompt_tokens
        now_s += 0.01
        began_cpu_s = time.thread_time()
        for name, one in zip(names, sent, strict=True):
            assert isinstance(one, SendReserve | SendPrefill)
            _finish(lifecycle, name, one, now_s)
        rest_s += time.thread_time() - began_cpu_s
    decisions = len(slowest_us) * burst
    return _Decided(
        decisions / cpu_s, decisions / wall_s, max(slowest_us), rest_s / decisions * 1e6, hits
    )


def _finish(lifecycle: Lifecycle, name: str, sent: SendReserve | SendPrefill, now_s: float) -> None:
    """What workers would say of a request until its end."""
    handle, decode = sent.handle, sent.worker_id
    reader = lifecycle.requests[name].prefill_worker
    first = [0]
    if isinstance(sent, SendReserve):
        lifecycle.handle(Reserved(decode, handle, _TICKET), now_s)
        lifecycle.handle(TokensArrived(reader, [handle], [0], [1], first), now_s)
        lifecycle.handle(PrefillDone(reader, handle, 1.0, _HANDOFF), now_s)
        lifecycle.handle(StateArrived(decode, handle), now_s)
    else:
        lifecycle.handle(TokensArrived(decode, [handle], [0], [1], first), now_s)
    rest = list(range(1, _OUTPUT_TOKENS))
    lifecycle.handle(TokensArrived(decode, [handle], [1], [len(rest)], rest), now_s)
    lifecycle.handle(Ended(decode, handle, common_pb2.REASON_LENGTH), now_s)
