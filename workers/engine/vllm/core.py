"""What the engine needs of vLLM, in plain words: the seam between our rules and their classes.

`binding.py` is the one real core and the only module that imports vLLM; tests of the rules have a
scripted one, which needs neither vLLM nor time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from workers.engine.chosen import Chosen
from workers.engine.commands import Sampling

CoreEnd = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class CoreFacts:
    """What vLLM said when it was up."""

    version: str
    kv_tokens: int
    block_tokens: int
    max_model_tokens: int
    vocab_size: int
    state_bytes_per_token: float
    hybrid: bool  # has Mamba layers: a prefix is cached only where there is a state, too


@dataclass(frozen=True, slots=True)
class CoreRequest:
    """One request as vLLM gets it. `keep` has its state kept for a decode worker to read;
    `transfer` (the kv_transfer_params of such a request, as JSON) has it read from there."""

    name: str
    token_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    priority: int = 0
    traceparent: str = ""
    keep: bool = False
    transfer: str = ""


@dataclass(frozen=True, slots=True)
class CoreRow:
    """What one step brought for one request."""

    name: str
    chosen: tuple[Chosen, ...] = ()
    end: CoreEnd | None = None
    transfer: str = ""  # of a request whose state is kept
    cached_tokens: int | None = None  # with the first row: what the local prefix cache spared
    drafted: tuple[int, ...] = ()  # with the last row, by position
    accepted: tuple[int, ...] = ()
    steps: int = 0


@dataclass(frozen=True, slots=True)
class CoreStep:
    """One step of vLLM's scheduler; `kv_share` of its KV memory is in use after it. `pulled` are
    the bytes and seconds of each state that its connector has read since the step before."""

    rows: tuple[CoreRow, ...] = ()
    kv_share: float = 0.0
    pulled: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks that came into the prefix cache, one hash each, after the block `parent`."""

    hashes: tuple[object, ...]
    parent: object | None
    token_ids: tuple[int, ...]
    block_tokens: int
    mamba: bool = False


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    hashes: tuple[object, ...]
    mamba: bool = False


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Nothing is cached any more."""


CacheNews = BlocksStored | BlocksRemoved | CacheCleared


class Core(Protocol):
    """Takes orders; none of them blocks."""

    def add(self, request: CoreRequest) -> None:
        """Have vLLM work on a request. Raises ValueError for one that it does not take."""

    def abort(self, name: str) -> None:
        """Forget a request, whether it is known or not."""

    def let_go(self, transfer: str) -> None:
        """Tell the worker that keeps a state that nobody here will read it."""
