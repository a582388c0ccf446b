"""Which pair of workers takes a request: the one from which its tokens are expected soonest.

    expected TTFT = wait for prompts ahead + uncached tokens / measured rate + transfer of the state

for each candidate pair of prefill and decode worker, chosen jointly; a step of the decode worker is
added, which tells equal pairs apart. A cached prefix is one term, fewer tokens to read, and so it
yields to load by itself. A request goes when decode (slots, memory, ITL target), prefill (work that
waits) and the link (bytes under way) can all take it; what it waits for otherwise is said.

The prompt is read on the decode worker where that is better or the only way: it is short or mostly
cached there, no prefill worker can be counted on, or the link is full.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router.core.fleet import Fleet, WorkerView
from router.core.policy import Policy

# How many of the least loaded workers of each role get a closer look, and how many with a hit.
_LEAST_LOADED = 3
_WITH_HIT = 3
# Tells workers apart of which no step was seen yet: fuller ones are a little worse.
_OCCUPANCY_S = 0.001


class Blocked(enum.StrEnum):
    """What a request waits for."""

    DECODE = "decode"
    PREFILL = "prefill"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Ask:
    """What placement must know of a request.

    Attributes:
        read_tokens: prompt and, after a failure, the tokens made so far.
        hold_tokens: what it may come to occupy at decode.
        itl_s: target of its class.
        hits: tokens of it that workers have cached.
        version: the model version that must go on with it; None: any.
        avoid: workers that failed it; taken only where there is no other.
    """

    read_tokens: int
    hold_tokens: int
    itl_s: float = 1.0
    hits: Mapping[str, int] | None = None
    version: str | None = None
    avoid: frozenset[str] = frozenset()


class Candidate(NamedTuple):
    """A pair that was looked at, or with an empty `prefill` a decode worker that reads itself."""

    decode: str
    prefill: str
    uncached_tokens: int
    wait_s: float
    read_s: float
    transfer_s: float
    step_s: float
    state_bytes: int
    refused: Blocked | None  # why it could not take the request

    @property
    def expected_s(self) -> float:
        """Seconds to the first token, and the step after it."""
        return self.wait_s + self.read_s + self.transfer_s + self.step_s


class Choice(NamedTuple):
    """What was chosen and from what; without `chosen` the request waits for `blocked`."""

    chosen: Candidate | None
    candidates: Sequence[Candidate]
    blocked: Blocked | None = None


def choose(fleet: Fleet, policy: Policy, ask: Ask) -> Choice:
    """The best pair that can take the request now."""
    versions = fleet.versions if ask.version is None else [ask.version]
    choices = [_choose_in(fleet, policy, ask, version) for version in versions]
    if len(choices) == 1:
        return choices[0]
    able = [choice for choice in choices if choice.chosen is not None]
    if able:
        return min(able, key=lambda choice: _order(choice.chosen))
    return next(iter(choices), Choice(None, (), Blocked.DECODE))


def fits_nowhere(fleet: Fleet, hold_tokens: int) -> bool:
    """Whether waiting is in vain: the request is larger than every decode worker."""
    pools = (fleet.columns(version, "decode") for version in fleet.versions)
    return not any(pool is not None and pool.any_size(hold_tokens) for pool in pools)


def _order(candidate: Candidate | None) -> tuple[float, str, str]:
    assert candidate is not None
    return (candidate.expected_s, candidate.decode, candidate.prefill)


def _choose_in(fleet: Fleet, policy: Policy, ask: Ask, version: str) -> Choice:
    """The best pair of one model version."""
    decoders = _decoders(fleet, ask, version)
    if not decoders:
        return Choice(None, (), Blocked.DECODE)
    pool = fleet.columns(version, "prefill")
    if pool is None or not pool.any_ever(ask.read_tokens):
        return _best([_local(view, ask) for view in decoders])
    local = [_local(view, ask) for view in decoders if _better_here(view, policy, ask)]
    readers = _readers(fleet, policy, ask, version)
    if not readers:
        return _best(local) if local else Choice(None, (), Blocked.PREFILL)
    pairs = [_pair(reader, view, policy, ask) for reader in readers for view in decoders]
    if all(pair.refused for pair in pairs):
        choice = _best([_local(view, ask) for view in decoders])
        return choice._replace(candidates=(*pairs, *choice.candidates))
    return _best(pairs + local)


def _best(candidates: list[Candidate]) -> Choice:
    able = [candidate for candidate in candidates if candidate.refused is None]
    return Choice(min(able, key=_order), candidates)


def _decoders(fleet: Fleet, ask: Ask, version: str) -> list[WorkerView]:
    """The few decode workers worth a closer look, of those that can take the request now."""
    pool = fleet.columns(version, "decode")
    if pool is None:
        return []
    names = pool.least_loaded(ask.hold_tokens, _LEAST_LOADED)
    views = _views(fleet, ask, names, "decode", version, ask.hold_tokens)
    return _unavoided(ask, [view for view in views if _keeps_itl(view, ask.itl_s)])


def _readers(fleet: Fleet, policy: Policy, ask: Ask, version: str) -> list[WorkerView]:
    pool = fleet.columns(version, "prefill")
    if pool is None:
        return []
    names = pool.soonest_read(ask.read_tokens, _LEAST_LOADED)
    views = _views(fleet, ask, names, "prefill", version, ask.read_tokens)
    backlog_s = policy.prefill_backlog_s
    return _unavoided(ask, [v for v in views if not v.unread or v.prefill_wait_s <= backlog_s])


def _views(
    fleet: Fleet, ask: Ask, names: list[str], role: str, version: str, tokens: int
) -> list[WorkerView]:
    """Workers by name, and those of the role that have most of the prompt cached."""
    views = [view for name in names if (view := fleet.get(name)) is not None]
    if not ask.hits:
        return views
    more = 0
    for name in ask.hits:  # most tokens first
        if more == _WITH_HIT:
            break
        view = fleet.get(name)
        if (
            view is not None
            and name not in names
            and view.role == role
            and view.model_version == version
            and view.room(fleet.now_s) >= tokens
        ):
            views.append(view)
            more += 1
    return views


def _unavoided(ask: Ask, views: list[WorkerView]) -> list[WorkerView]:
    if not ask.avoid:
        return views
    return [view for view in views if view.worker_id not in ask.avoid] or views


def _keeps_itl(view: WorkerView, itl_s: float) -> bool:
    most = view.most_requests(itl_s)
    return most is None or view.running < most


def _better_here(view: WorkerView, policy: Policy, ask: Ask) -> bool:
    """Whether so little is to be read that a hand-off is not worth it."""
    uncached = _uncached(view, ask)
    share = policy.local_prefill_share * ask.read_tokens
    return uncached <= max(policy.local_prefill_tokens, share)


def _uncached(view: WorkerView, ask: Ask) -> int:
    return ask.read_tokens - (ask.hits.get(view.worker_id, 0) if ask.hits else 0)


def _step_s(view: WorkerView) -> float:
    occupancy = len(view.holds) / max(view.total_slots, 1)
    return view.steps.step_s(view.running + 1) + _OCCUPANCY_S * occupancy


def _local(view: WorkerView, ask: Ask) -> Candidate:
    uncached = _uncached(view, ask)
    read_s = uncached / view.prefill_tokens_per_s
    # Whoever decodes there waits while the prompt is read.
    stall_s = read_s if view.running else 0.0
    return Candidate(
        decode=view.worker_id,
        prefill="",
        uncached_tokens=uncached,
        wait_s=view.prefill_wait_s,
        read_s=read_s,
        transfer_s=0.0,
        step_s=_step_s(view) + stall_s,
        state_bytes=0,
        refused=None,
    )


def _pair(reader: WorkerView, view: WorkerView, policy: Policy, ask: Ask) -> Candidate:
    uncached = _uncached(reader, ask)
    load = reader.load
    state_bytes = int(ask.read_tokens * load.state_bytes_per_token) + load.state_bytes_per_request
    rates = [rate for rate in (reader.link_bytes_per_s, view.link_bytes_per_s) if rate > 0.0]
    transfer_s, refused = 0.0, None
    if rates:
        rate = min(rates)
        ahead = max(reader.link_bytes, view.link_bytes)
        transfer_s = (ahead + state_bytes) / rate
        # One hand-off is always let by, however slow the link.
        if ahead and transfer_s > policy.link_backlog_s:
            refused = Blocked.LINK
    return Candidate(
        decode=view.worker_id,
        prefill=reader.worker_id,
        uncached_tokens=uncached,
        wait_s=reader.prefill_wait_s,
        read_s=uncached / reader.prefill_tokens_per_s,
        transfer_s=transfer_s,
        step_s=_step_s(view),
        state_bytes=state_bytes,
        refused=refused,
    )
