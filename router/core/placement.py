"""Which pair of workers takes a request: the one from which its tokens are expected soonest.

    expected TTFT = wait for prompts ahead + uncached tokens / measured rate + transfer of the state

for each candidate pair of prefill and decode worker, chosen jointly; a step of the decode worker is
added, which tells equal pairs apart. A cached prefix is one term, fewer tokens to read, and so it
yields to load by itself. A request goes when decode (slots, memory, ITL target), prefill (work that
waits) and the link (bytes under way) can all take it; what it waits for otherwise is said.

The prompt is read on the decode worker where that is better or the only way: it is short or mostly
cached there, no prefill worker can be counted on, or it would be read before a full link is free.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from router.core.columns import Columns
from router.core.fleet import Fleet
from router.core.policy import Policy
from router.core.prefix_index import NO_HITS, Hits
from router.core.worker_view import WorkerView

# How many of the least loaded workers of each role get a closer look, how many with a hit are
# considered, and how many of these.
_LEAST_LOADED = 3
_LOOKED_AT = 4
_WITH_HIT = 2
# How many are paired in the end.
_READERS = 3
_OTHER_WRITERS = 2


class Blocked(enum.StrEnum):
    """What a request waits for."""

    DECODE = "decode"
    PREFILL = "prefill"
    LINK = "link"


@dataclass(slots=True, init=False)
class Ask:
    """What placement must know of a request."""

    read_tokens: Final[int]  # prompt and, after a failure, the tokens made so far
    hold_tokens: Final[int]  # what it may come to occupy at decode
    itl_s: Final[float]  # target of its class
    hits: Final[Hits]  # what is cached of it where
    version: Final[str | None]  # of the model that must go on with it; None: any
    avoid: Final[frozenset[str]]  # workers that failed it: taken if there is no other

    def __init__(
        self,
        read_tokens: int,
        hold_tokens: int,
        itl_s: float = 1.0,
        hits: Hits = NO_HITS,
        version: str | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> None:
        self.read_tokens = read_tokens
        self.hold_tokens = hold_tokens
        self.itl_s = itl_s
        self.hits = hits
        self.version = version
        self.avoid = avoid


@dataclass(slots=True, init=False)
class Candidate:
    """A pair that was looked at, or with an empty `prefill` a decode worker that reads itself.

    `expected_s` is seconds to the first token, and the step after it: the sum of the others.
    """

    expected_s: Final[float]
    decode: Final[str]
    prefill: Final[str]
    uncached_tokens: Final[int]
    wait_s: Final[float]
    read_s: Final[float]
    transfer_s: Final[float]
    step_s: Final[float]
    state_bytes: Final[int]
    refused: Final[Blocked | None]  # why it could not take the request

    def __init__(
        self,
        expected_s: float,
        decode: str,
        prefill: str,
        uncached_tokens: int,
        wait_s: float,
        read_s: float,
        transfer_s: float,
        step_s: float,
        state_bytes: int,
        refused: Blocked | None,
    ) -> None:
        self.expected_s = expected_s
        self.decode = decode
        self.prefill = prefill
        self.uncached_tokens = uncached_tokens
        self.wait_s = wait_s
        self.read_s = read_s
        self.transfer_s = transfer_s
        self.step_s = step_s
        self.state_bytes = state_bytes
        self.refused = refused


@dataclass(slots=True, init=False)
class Choice:
    """What was chosen and from what; without `chosen` the request waits for `blocked`."""

    chosen: Final[Candidate | None]
    candidates: Final[Sequence[Candidate]]
    blocked: Final[Blocked | None]

    def __init__(
        self,
        chosen: Candidate | None,
        candidates: Sequence[Candidate],
        blocked: Blocked | None = None,
    ) -> None:
        self.chosen = chosen
        self.candidates = candidates
        self.blocked = blocked


def choose(fleet: Fleet, policy: Policy, ask: Ask) -> Choice:
    """The best pair that can take the request now."""
    versions = fleet.versions if ask.version is None else [ask.version]
    choices = [_choose_in(fleet, policy, ask, version) for version in versions]
    if len(choices) == 1:
        return choices[0]
    able = [(choice.chosen, choice) for choice in choices if choice.chosen is not None]
    if able:
        best = soonest([chosen for chosen, _ in able])
        return next(choice for chosen, choice in able if chosen is best)
    return next(iter(choices), Choice(None, (), Blocked.DECODE))


def soonest(candidates: Sequence[Candidate]) -> Candidate:
    """Of some, at least one: whose tokens are expected first, equal ones by name."""
    best = candidates[0]
    for one in candidates:
        if one.expected_s < best.expected_s or (
            one.expected_s == best.expected_s
            and (one.decode, one.prefill) < (best.decode, best.prefill)
        ):
            best = one
    return best


def fits_nowhere(fleet: Fleet, hold_tokens: int) -> bool:
    """Whether waiting is in vain: the request is larger than every decode worker."""
    pools = (fleet.columns(version, "decode") for version in fleet.versions)
    return not any(pool is not None and pool.any_size(hold_tokens) for pool in pools)


@dataclass(slots=True, init=False)
class _Reader:
    """What a prefill worker would do for a request, whoever decodes it."""

    done_s: Final[float]
    worker_id: Final[str]
    view: Final[WorkerView]
    uncached_tokens: Final[int]
    read_s: Final[float]
    state_bytes: Final[int]

    def __init__(
        self,
        done_s: float,
        worker_id: str,
        view: WorkerView,
        uncached_tokens: int,
        read_s: float,
        state_bytes: int,
    ) -> None:
        self.done_s = done_s
        self.worker_id = worker_id
        self.view = view
        self.uncached_tokens = uncached_tokens
        self.read_s = read_s
        self.state_bytes = state_bytes


def _choose_in(fleet: Fleet, policy: Policy, ask: Ask, version: str) -> Choice:
    """The best pair of one model version."""
    decoders = fleet.columns(version, "decode")
    if decoders is None:
        return Choice(None, (), Blocked.DECODE)
    with_hit = _with_hit(fleet, ask, version)
    writers = _writers(decoders, ask, with_hit)
    if not writers:
        return Choice(None, (), Blocked.DECODE)
    pool = fleet.columns(version, "prefill")
    if pool is None or not pool.any_ever(ask.read_tokens):
        return _best([_local(writer, ask) for writer in writers])
    local = _worth_reading_here(writers, policy, ask, with_hit)
    readers = _readers(pool, ask, with_hit)
    if not readers:
        return _best(local) if local else Choice(None, (), Blocked.PREFILL)
    if len(writers) > 1:
        writers.sort(key=_promptness)
    # Every reader with the best writer, and the best reader with the others: the best pair is one
    # of them unless its link is busy at both ends.
    best, *others = writers
    pairs = [_pair(reader, best, policy) for reader in readers]
    pairs += [_pair(readers[0], writer, policy) for writer in others[:_OTHER_WRITERS]]
    if all(pair.refused for pair in pairs):
        # Reading here keeps everybody waiting who decodes here: only where the link takes longer.
        soonest_s = min([pair.expected_s for pair in pairs])
        here = [_local(writer, ask) for writer in writers]
        sooner = [candidate for candidate in here if candidate.expected_s <= soonest_s]
        best_here = soonest(sooner) if sooner else None
        return Choice(best_here, (*pairs, *here), Blocked.LINK)
    return _best(pairs + local if local else pairs)


def _best(candidates: list[Candidate]) -> Choice:
    able = [candidate for candidate in candidates if candidate.refused is None]
    return Choice(soonest(able), candidates)


def _writers(pool: Columns, ask: Ask, with_hit: list[WorkerView]) -> list[WorkerView]:
    """The few decode workers worth a closer look, of those that can take the request now."""
    views = pool.least_loaded(ask.hold_tokens, _LEAST_LOADED)
    views += [
        view
        for view in with_hit
        if view.role == "decode" and view.room_tokens >= ask.hold_tokens and view not in views
    ]
    return _unavoided(ask, [view for view in views if _keeps_itl(view, ask.itl_s)])


def _readers(pool: Columns, ask: Ask, with_hit: list[WorkerView]) -> list[_Reader]:
    """The few prefill workers that would have read the request first."""
    views = pool.soonest_read(ask.read_tokens, _LEAST_LOADED)
    more = [
        view
        for view in with_hit
        if view.role == "prefill" and view.room_tokens >= ask.read_tokens and view not in views
    ]
    if len(more) > _WITH_HIT:
        more.sort(key=lambda view: (view.wait_s, view.worker_id))
    hits, readers = ask.hits, []
    for view in _unavoided(ask, views + more[:_WITH_HIT]):
        name, load, uncached = view.worker_id, view.load, ask.read_tokens
        if hits:
            uncached -= hits.tokens(name)
        read_s = uncached * view.per_token_s
        state_bytes = int(ask.read_tokens * load.state_bytes_per_token)
        state_bytes += load.state_bytes_per_request
        done_s = view.wait_s + read_s
        readers.append(_Reader(done_s, name, view, uncached, read_s, state_bytes))
    if len(readers) > 1:
        readers.sort(key=_doneness)
    return readers[:_READERS]


def _with_hit(fleet: Fleet, ask: Ask, version: str) -> list[WorkerView]:
    """Some of the workers of a version that have most of the prompt."""
    if not ask.hits:
        return []
    views = map(fleet.get, ask.hits.most(_LOOKED_AT))
    return [view for view in views if view is not None and view.model_version == version]


def _promptness(writer: WorkerView) -> tuple[float, str]:
    """How soon a decode worker makes a step after a hand-off."""
    link_s = writer.link_bytes / writer.link_rate if writer.link_rate else 0.0
    return (link_s + writer.next_step_s, writer.worker_id)


def _doneness(reader: _Reader) -> tuple[float, str]:
    return (reader.done_s, reader.worker_id)


def _unavoided(ask: Ask, views: list[WorkerView]) -> list[WorkerView]:
    if not ask.avoid:
        return views
    return [view for view in views if view.worker_id not in ask.avoid] or views


def _keeps_itl(view: WorkerView, itl_s: float) -> bool:
    if not view.steps.limits:
        return True
    most = view.most_requests(itl_s)
    return most is None or view.running < most


def _worth_reading_here(
    writers: list[WorkerView], policy: Policy, ask: Ask, with_hit: list[WorkerView]
) -> list[Candidate]:
    """Decode workers where so little is to be read that a hand-off is not worth it."""
    most = max(float(policy.local_prefill_tokens), policy.local_prefill_share * ask.read_tokens)
    if ask.read_tokens > most:
        if not with_hit:
            return []
        writers = [view for view in writers if view in with_hit]
    local = [_local(view, ask) for view in writers]
    return [candidate for candidate in local if candidate.uncached_tokens <= most]


def _local(view: WorkerView, ask: Ask) -> Candidate:
    uncached = ask.read_tokens - ask.hits.tokens(view.worker_id)
    read_s = uncached * view.per_token_s
    # Whoever decodes there waits while the prompt is read.
    stall_s = read_s if view.running else 0.0
    step_s = view.next_step_s + stall_s
    return Candidate(
        expected_s=view.wait_s + read_s + step_s,
        decode=view.worker_id,
        prefill="",
        uncached_tokens=uncached,
        wait_s=view.wait_s,
        read_s=read_s,
        transfer_s=0.0,
        step_s=step_s,
        state_bytes=0,
        refused=None,
    )


def _pair(reader: _Reader, target: WorkerView, policy: Policy) -> Candidate:
    source = reader.view
    transfer_s, refused = 0.0, None
    rate = source.link_rate
    if not rate or 0.0 < target.link_rate < rate:
        rate = target.link_rate
    if rate:
        ahead = max(source.link_bytes, target.link_bytes)
        transfer_s = (ahead + reader.state_bytes) / rate
        # What is ahead counts: of a long prompt the state alone may take longer.
        if ahead > policy.link_backlog_s * rate:
            refused = Blocked.LINK
    return Candidate(
        reader.done_s + transfer_s + target.next_step_s,
        target.worker_id,
        reader.worker_id,
        reader.uncached_tokens,
        source.wait_s,
        reader.read_s,
        transfer_s,
        target.next_step_s,
        reader.state_bytes,
        refused,
    )
