"""Who runs: decode is never starved, prompts share the rest, and somebody gives way when full."""

from __future__ import annotations

from workers.engine.commands import Sampling, WorkItem
from workers.engine.native.scheduler import Scheduler
from workers.engine.native.sequence import Sequence, Stage
from workers.engine.sampling.state import SamplingState
from workers.state.memory import StateMemory

BLOCK_TOKENS = 4


def _memory(blocks: int = 64, checkpoints: int = 8) -> StateMemory:
    return StateMemory(
        blocks=blocks, block_tokens=BLOCK_TOKENS, max_requests=8, max_checkpoints=checkpoints
    )


def _sequence(key: int, prompt_tokens: int, priority: int = 0) -> Sequence:
    sampling = Sampling(max_tokens=100)
    item = WorkItem(key, f"r{key}", sampling, prompt_tokens, priority=priority)
    prompt = tuple(1000 * key + index for index in range(prompt_tokens))
    return Sequence(item, Stage.WAITING, key, SamplingState(sampling, prompt), prompt)


def _read(scheduler: Scheduler, decode_tokens: int = 0) -> list[tuple[int, int]]:
    """Run one step's chunks: (key, tokens) of each; whoever is read to the end decodes."""
    read = []
    for sequence, tokens, _ in scheduler.chunks(decode_tokens):
        read.append((sequence.item.key, tokens))
        sequence.context_tokens += tokens
        if sequence.unread_tokens == 0:
            scheduler.remove(sequence)
            if not sequence.output:
                sequence.sampling.append(7)
            scheduler.decode(sequence)
    return read


def test_a_long_prompt_is_read_in_chunks_of_the_budget() -> None:
    scheduler = Scheduler(_memory(), step_tokens=16, checkpoint_tokens=64)
    scheduler.wait(_sequence(1, 40))
    assert [_read(scheduler) for _ in range(4)] == [[(1, 16)], [(1, 16)], [(1, 8)], []]


def test_decode_rows_run_in_every_step_and_take_from_the_budget_of_prompts() -> None:
    scheduler = Scheduler(_memory(), step_tokens=16, checkpoint_tokens=64)
    scheduler.wait(_sequence(1, 4))
    _read(scheduler)
    scheduler.wait(_sequence(2, 40))
    assert [row.item.key for row in scheduler.decode_rows(0)] == [1]
    assert _read(scheduler, decode_tokens=10) == [(2, 6)]
    assert [row.item.key for row in scheduler.decode_rows(0)] == [1]


def test_prompts_get_a_share_even_when_decode_would_take_the_whole_budget() -> None:
    scheduler = Scheduler(_memory(), step_tokens=16, checkpoint_tokens=64)
    scheduler.wait(_sequence(1, 40))
    assert _read(scheduler, decode_tokens=500) == [(1, 4)]


def test_several_short_prompts_share_a_step_in_order_of_class_and_arrival() -> None:
    scheduler = Scheduler(_memory(), step_tokens=16, checkpoint_tokens=64)
    for key, priority in ((1, 1), (2, 0), (3, 0)):
        scheduler.wait(_sequence(key, 6, priority))
    assert _read(scheduler) == [(2, 6), (3, 6), (1, 4)]


def test_chunks_end_where_prefixes_are_cached() -> None:
    scheduler = Scheduler(_memory(), step_tokens=16, checkpoint_tokens=12)
    scheduler.wait(_sequence(1, 30))
    assert [_read(scheduler) for _ in range(3)] == [[(1, 12)], [(1, 12)], [(1, 6)]]


def test_a_prompt_that_does_not_fit_now_waits_and_nobody_overtakes_it() -> None:
    memory = _memory(blocks=6)
    scheduler = Scheduler(memory, step_tokens=64, checkpoint_tokens=64)
    first = _sequence(1, 16)
    scheduler.wait(first)
    _read(scheduler)
    scheduler.wait(_sequence(2, 16))
    scheduler.wait(_sequence(3, 4))
    assert _read(scheduler) == []
    scheduler.remove(first)
    memory.free(1)
    assert _read(scheduler) == [(2, 16), (3, 4)]


def test_when_blocks_run_out_the_youngest_of_the_lowest_class_gives_way_and_waits() -> None:
    memory = _memory(blocks=6, checkpoints=0)
    scheduler = Scheduler(memory, step_tokens=64, checkpoint_tokens=64)
    sequences = {1: _sequence(1, 8, 0), 2: _sequence(2, 8, 1), 3: _sequence(3, 8, 1)}
    for sequence in sequences.values():
        scheduler.wait(sequence)
    _read(scheduler)
    rows = scheduler.decode_rows(0)
    assert [row.item.key for row in rows] == [1, 2]
    assert sequences[3].stage is Stage.WAITING
    assert sequences[3].context_tokens == 0
    assert sequences[3].to_read == sequences[3].prompt
    memory.audit()


def test_a_preempted_request_reads_its_prompt_and_its_output_but_the_last_token() -> None:
    memory = _memory()
    scheduler = Scheduler(memory, step_tokens=64, checkpoint_tokens=64)
    sequence = _sequence(1, 8)
    scheduler.wait(sequence)
    _read(scheduler)
    for token_id in (8, 9):
        sequence.sampling.append(token_id)
        sequence.context_tokens += 1
    scheduler.preempt(sequence)
    assert sequence.unread_tokens == 10
    assert list(sequence.to_read) == [*sequence.prompt, 7, 8]
    assert _read(scheduler) == [(1, 10)]
    assert sequence.tokens_from(sequence.context_tokens) == [9]
