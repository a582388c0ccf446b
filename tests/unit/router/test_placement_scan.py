"""The quick search chooses the pair that a plain look at all pairs would choose."""

from __future__ import annotations

import random
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.breaker import Breaker
from router.core.columns import Columns
from router.core.events import (
    CacheChanged,
    CreditsChanged,
    DrainRequested,
    LoadChanged,
    RequestArrived,
    Role,
    WorkerJoined,
    WorkerLost,
)
from router.core.lifecycle import Lifecycle
from router.core.policy import Policy
from router.core.prefixes import PrefixKeys
from router.core.worker_view import WorkerView

BLOCK_TOKENS = 4
# Whoever decodes reads nothing; so every request needs a pair.
POLICY = Policy(
    local_prefill_tokens=0,
    local_prefill_share=0.0,
    prefill_backlog_s=0.02,
    queue_limit=10**6,
    patience=1e9,
)
ANSWER_TOKENS = 8


def _could_take(view: WorkerView, tokens: int) -> bool:
    if view.draining or view.refused or not view.free_slots or view.free_tokens < tokens:
        return False
    reads = view.role == "prefill" and view.unread_tokens > 0
    return not (reads and _wait_s(view) > POLICY.prefill_backlog_s)


def _rate(view: WorkerView) -> float:
    return view.load.prefill_tokens_per_s or POLICY.assumed_prefill_tokens_per_s


def _wait_s(view: WorkerView) -> float:
    return max(view.unread_tokens, view.load.waiting_prefill_tokens) / _rate(view)


def _least_s(core: Lifecycle, prompt: list[int], cached: dict[str, int]) -> float | None:
    """Of all pairs that could take a prompt, the soonest first token; None: no pair could.

    No links or steps are measured here, so decode workers differ in how full they are.
    """
    readers = [v for v in core.fleet.of_role("prefill") if _could_take(v, len(prompt))]
    hold_tokens = len(prompt) + ANSWER_TOKENS
    writers = [v for v in core.fleet.of_role("decode") if _could_take(v, hold_tokens)]
    return min(
        (
            _wait_s(reader)
            + (len(prompt) - cached.get(reader.worker_id, 0)) / _rate(reader)
            + 0.001 * len(writer.holds) / writer.most_slots
            for reader, writer in product(readers, writers)
        ),
        default=None,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_chosen_pair_is_the_best_of_all(prefill: int, decode: int, rng: random.Random) -> None:
    core = Lifecycle(POLICY, validate=True)
    roles: list[Role] = ["prefill" for _ in range(prefill)]
    roles += ["decode" for _ in range(decode)]
    names = [f"{role}-{number}" for number, role in enumerate(roles)]

    def change(name: str) -> None:
        slots, tokens = rng.randint(0, 4), rng.choice([30, 60, 10**4])
        core.handle(CreditsChanged(name, slots, tokens, 10**4, 4), 0.0)
        rate = rng.choice([0.0, 1e3, 5e3, rng.uniform(1e3, 1e4)])
        waiting = rng.choice([0, 0, 10, 40]) if name.startswith("prefill") else 0
        core.handle(LoadChanged(name, 0, waiting, rate), 0.0)

    for name, role in zip(names, roles, strict=True):
        core.handle(WorkerJoined(name, role), 0.0)
        change(name)
    shared = [rng.randrange(100) for _ in range(16)]
    keys = PrefixKeys.of(shared, BLOCK_TOKENS)
    cached = dict.fromkeys(rng.sample(names[:prefill], min(2, prefill)), 12)
    for name in cached:
        state = (keys.names[3], keys.names[3], 12)
        core.handle(CacheChanged(name, BLOCK_TOKENS, False, keys.names[1:], (), [state]), 0.0)
    for number in range(20):
        match rng.randrange(6):
            case 0:
                core.handle(DrainRequested(rng.choice(names), rng.random() < 0.7), 0.0)
            case 1:
                lost = rng.randrange(len(names))
                core.handle(WorkerLost(names[lost]), 0.0)
                cached.pop(names[lost], None)
                core.handle(WorkerJoined(names[lost], roles[lost]), 0.0)
                change(names[lost])
            case _:
                change(rng.choice(names))
        for request in list(core.queue):
            core.queue.discard(request)
            del core.requests[request.request_id]
        follows = rng.random() < 0.5
        prompt = shared + [rng.randrange(100) for _ in range(rng.randint(1, 20))]
        if not follows:
            prompt[0] = 100
        least_s = _least_s(core, prompt, cached if follows else {})
        name = f"r{number}"
        prefix = PrefixKeys.of(prompt, BLOCK_TOKENS)
        core.handle(RequestArrived(name, len(prompt), ANSWER_TOKENS, prefix=prefix), 0.0)
        story = core.explain(name)
        assert story is not None
        if all(view.draining for view in core.fleet.of_role("prefill")):
            # Nobody reads for others any more, so whoever writes does.
            assert all(not one.chosen.prefill for one in story.decisions)
        elif least_s is None:
            assert not story.decisions
        else:
            assert abs(story.decisions[0].chosen.expected_s - least_s) < 1e-9


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_least_of_a_column_are_those_that_sorting_gives(count: int, rng: random.Random) -> None:
    columns = Columns()
    rows: dict[int, tuple[WorkerView, int, float, float]] = {}
    breaker = Breaker(POLICY)
    views = [WorkerView(f"w{n}", "prefill", "", POLICY, breaker) for n in range(count)]
    for view in views:
        rows[columns.add(view)] = (view, -1, 0.0, 0.0)
    for _ in range(30):
        row = rng.choice(sorted(rows))
        view = rows[row][0]
        if rng.random() < 0.2:
            columns.remove(row)
            del rows[row]
            row = columns.add(view)
        room, load, per_token_s = rng.randint(-1, 9), rng.randint(0, 3) / 2, rng.randint(0, 2) / 8
        columns.write(row, room, load)
        columns.limit(row, room, room, per_token_s)
        rows[row] = (view, room, load, per_token_s)
        tokens, most = rng.randint(1, 9), rng.randint(1, 4)
        fit = [one for _, one in sorted(rows.items()) if one[1] >= tokens]
        by_load = sorted(fit, key=lambda one: one[2])[:most]
        by_end = sorted(fit, key=lambda one: tokens * one[3] + one[2])[:most]
        assert columns.least_loaded(tokens, most) == [one[0] for one in by_load]
        assert columns.soonest_read(tokens, most) == [one[0] for one in by_end]
        assert columns.any_size(tokens) == columns.any_ever(tokens) == bool(fit)
