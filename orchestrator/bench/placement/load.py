"""A cluster as the router's core sees it: hundreds of workers, and a prefix index full of blocks.

Everything that a live router would have been told, made up from a seed: prompts that share system
prompts and conversations, spread over the prefill workers, with more of them than fit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from router.core.events import CacheChanged, CreditsChanged, LoadChanged, Role, WorkerJoined
from router.core.lifecycle import Lifecycle
from router.core.policy import ClassPolicy, Policy
from router.core.prefixes import PrefixKeys

BLOCK_TOKENS = 16
# Every so many blocks the Mamba state is kept, as with the native engine's default.
_STATE_BLOCKS = 16
_SYSTEM_PROMPTS = 32
_SYSTEM_TOKENS = 256
_VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of the bench."""

    workers: int = 512  # half of them read prompts
    blocks: int = 1_000_000
    prompt_tokens: int = 512
    decisions: int = 20_000
    seed: int = 0


class Prompts:
    """Prompts as traffic has them: a system prompt, and after it a conversation."""

    def __init__(self, settings: Settings) -> None:
        self._rng = random.Random(settings.seed)
        self._tokens = settings.prompt_tokens
        self._system = [self._some(_SYSTEM_TOKENS) for _ in range(_SYSTEM_PROMPTS)]

    def _some(self, tokens: int) -> list[int]:
        return [self._rng.randrange(_VOCABULARY) for _ in range(tokens)]

    def new(self) -> list[int]:
        """A prompt whose conversation nobody has seen yet."""
        system = self._rng.choice(self._system)[: self._tokens]
        return system + self._some(self._tokens - len(system))


def policy(settings: Settings) -> Policy:
    """The default policy with room for the bench's blocks and nothing shed."""
    return Policy(
        classes=(ClassPolicy("interactive", 0.5, 0.04, 4.0), ClassPolicy("batch", 10.0, 0.2, 1.0)),
        index_entries=settings.blocks,
        queue_limit=1_000_000,
        patience=1e9,
    )


def join_workers(lifecycle: Lifecycle, settings: Settings) -> None:
    """Half prefill, half decode, each with its own speed and load."""
    rng = random.Random(settings.seed + 1)
    roles: tuple[Role, Role] = ("prefill", "decode")
    for number in range(settings.workers):
        name, role = f"worker-{number:04d}", roles[number % 2]
        lifecycle.handle(WorkerJoined(name, role, "model@0"), 0.0)
        lifecycle.handle(CreditsChanged(name, 64, 1 << 20, 1 << 20, 64), 0.0)
        load = LoadChanged(
            name,
            running_requests=rng.randrange(32),
            waiting_prefill_tokens=rng.randrange(2048) if role == "prefill" else 0,
            prefill_tokens_per_s=rng.uniform(2e4, 4e4),
            step_ms=rng.uniform(8.0, 12.0),
            step_requests=rng.randrange(1, 32),
            step_tokens=2.0,
            link_bytes_per_s=2e10,
            state_bytes_per_token=8192.0,
            state_bytes_per_request=1 << 22,
        )
        lifecycle.handle(load, 0.0)


def fill_index(lifecycle: Lifecycle, settings: Settings, prompts: Prompts) -> list[list[int]]:
    """Have prefill workers cache prompts until the index is full; returns some that are cached."""
    rng = random.Random(settings.seed + 2)
    index = lifecycle.book.index
    readers = [view.worker_id for view in lifecycle.fleet.of_role("prefill")]
    cached: list[list[int]] = []
    # Names of blocks that nobody asks for again need no prompt behind them.
    filler = iter(range(1 << 59, (1 << 59) + 4 * settings.blocks))
    run_blocks = max(1, settings.prompt_tokens // BLOCK_TOKENS)
    while index.blocks < settings.blocks * 9 // 10:
        stored = [next(filler) for _ in range(64 * run_blocks)]
        states = [(name, name, _STATE_BLOCKS * BLOCK_TOKENS) for name in stored[::_STATE_BLOCKS]]
        worker_id = rng.choice(readers)
        lifecycle.handle(CacheChanged(worker_id, BLOCK_TOKENS, False, stored, (), states), 0.0)
    for _ in range(4096):
        token_ids = prompts.new()
        names = PrefixKeys.of(token_ids, BLOCK_TOKENS).names
        states = [
            (names[count], names[count], count * BLOCK_TOKENS)
            for count in range(_STATE_BLOCKS, len(names), _STATE_BLOCKS)
        ]
        for worker_id in rng.sample(readers, min(2, len(readers))):
            event = CacheChanged(worker_id, BLOCK_TOKENS, False, names[1:], (), states)
            lifecycle.handle(event, 0.0)
        cached.append(token_ids)
    return cached
