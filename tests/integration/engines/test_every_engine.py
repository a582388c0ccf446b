"""What every engine promises behind a router, whatever computes its tokens: exact answers handed
over, nothing held after a cancel, nothing lost with a worker, nothing cut off by a drain."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psutil
import pytest

from protos.tandem.v1.common_pb2 import REASON_CANCELLED, REASON_LENGTH, REASON_STOP_TOKEN
from router.core.workforce import duty
from router.requests import ClientRequest
from tests.integration.engines.rig import PATIENCE_S, Answer, Rig, all_free, ask, ask_all

_SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 7},
}


def _prompt(length: int, step: int, salt: int = 0) -> list[int]:
    """Of another `salt`, a prompt that shares no prefix: nobody has cached it."""
    return [5 + (salt + step * index) % 90 for index in range(length)]


def _request(prompt: list[int], max_tokens: int, **sampling: float) -> ClientRequest:
    plain = ClientRequest(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return replace(plain, **sampling)  # type: ignore[arg-type]


def _prompts(salt: int) -> list[list[int]]:
    """Whole blocks, part of a block, more than one."""
    return [_prompt(*size, salt) for size in ((64, 7), (33, 11), (90, 13), (96, 17))]


@pytest.mark.parametrize("name", _SAMPLINGS)
async def test_an_answer_that_was_handed_over_is_that_of_the_engine_alone(
    whole_rig: Rig, name: str
) -> None:
    prompts = _prompts(list(_SAMPLINGS).index(name))
    requests = [_request(prompt, 24, **_SAMPLINGS[name]) for prompt in prompts]
    async with whole_rig.router("d1") as alone, whole_rig.router("p", "d2") as pair:
        whole = await ask_all(alone, requests)
        over = await ask_all(pair, requests)
        assert [answer.token_ids for answer in over] == [answer.token_ids for answer in whole]
        assert len({tuple(answer.token_ids) for answer in whole}) == len(requests)
        for answer in over:
            assert answer.reason == REASON_LENGTH
            assert answer.report.prefill_worker.startswith("p-")
            assert answer.report.decode_worker.startswith("d2-")
            assert answer.report.handoff.transfer_ms > 0.0
        await all_free(alone, 1)
        await all_free(pair, 2)


async def test_state_goes_from_a_group_of_ranks_to_a_single_one(whole_rig: Rig) -> None:
    requests = [_request(prompt, 24) for prompt in _prompts(6)]
    group = replace(whole_rig.template, role="prefill", tp=2)
    with whole_rig.another("p2", group) as two:
        async with whole_rig.router("d1") as alone, whole_rig.router("d2", more=[two]) as pair:
            whole = await ask_all(alone, requests)
            over = await ask_all(pair, requests)
            assert [answer.token_ids for answer in over] == [answer.token_ids for answer in whole]
            for answer in over:
                assert answer.report.prefill_worker == two.worker_id
            await all_free(pair, 2)


async def test_an_answer_ends_with_its_stop_token_wherever_that_comes(whole_rig: Rig) -> None:
    prompt = _prompts(3)[0]
    async with whole_rig.router("p", "d1") as pair:
        (whole,) = await ask_all(pair, [_request(prompt, 12)])
        for place in (0, 5):
            stop = whole.token_ids[place]
            first = whole.token_ids.index(stop)
            request = replace(_request(prompt, 12), stop_token_ids=(stop,))
            (answer,) = await ask_all(pair, [request])
            assert answer.reason == REASON_STOP_TOKEN
            # A router leaves the token that only ends an answer out.
            assert whole.token_ids[:first] == answer.token_ids[:first]
            assert len(answer.token_ids) <= first + 1
        (one,) = await ask_all(pair, [_request(prompt, 1)])
        assert (one.token_ids, one.reason) == (whole.token_ids[:1], REASON_LENGTH)
        await all_free(pair, 2)


async def test_a_cancelled_request_leaves_nothing_held(whole_rig: Rig) -> None:
    async with whole_rig.router("p", "d1") as pair:
        answers = [Answer() for _ in range(6)]
        running = []
        for number, answer in enumerate(answers):
            request = replace(_request(_prompt(64, 3 + number), 1500), request_id=f"c{number}")
            running.append(asyncio.create_task(ask(pair, request, answer)))
        # Some in the middle of their answers, some wherever they are.
        await asyncio.wait_for(answers[0].some.wait(), PATIENCE_S)
        for number in range(len(answers)):
            assert pair.cancel(f"c{number}")
        await asyncio.gather(*running)
        assert {answer.reason for answer in answers} == {REASON_CANCELLED}
        await all_free(pair, 2)


async def test_a_prefix_that_was_read_is_not_read_again(whole_rig: Rig) -> None:
    async with whole_rig.router("p", "d1") as pair:
        prompt = _prompt(96, 23)
        (first,) = await ask_all(pair, [_request(prompt, 4)])
        await all_free(pair, 2)
        (second,) = await ask_all(pair, [_request(prompt, 4)])
        assert second.token_ids == first.token_ids
        assert second.report.cached_tokens >= 32


async def test_a_worker_that_drains_loses_nothing_and_takes_no_more(
    whole_rig: Rig,
) -> None:
    async with whole_rig.router("p", "d1", "d2") as router:
        answer = Answer()
        running = asyncio.create_task(ask(router, _request(_prompts(4)[1], 400), answer))
        await asyncio.wait_for(answer.some.wait(), PATIENCE_S)
        status = await router.status()
        drained = next(
            worker.record.worker_id
            for worker in status.workers
            if worker.view is not None and worker.view.role == "decode" and worker.view.holds
        )
        assert router.drain(drained)
        later = await ask_all(router, [_request(prompt, 8) for prompt in _prompts(5)])
        assert not [one for one in later if one.report.decode_worker == drained]
        await running
        assert (len(answer.token_ids), answer.reason) == (400, REASON_LENGTH)
        async with asyncio.timeout(PATIENCE_S):
            while (view := router.worker(drained)) is None or duty(view) != "safe_to_delete":
                await router.workers_changed(1.0)
        assert router.drain(drained, resume=True)
        await all_free(router, 3)


@pytest.mark.parametrize("lost", ["d1", "p"])
async def test_a_killed_worker_costs_no_request_and_leaves_no_process(
    whole_rig: Rig, lost: str
) -> None:
    requests = [
        _request(_prompt(60 + number, 3 + number), 60, **_SAMPLINGS[name])
        for number, name in enumerate(["greedy", "sampled", "greedy"] * 3)
    ]
    names = ("p", "d1") if lost == "p" else ("p", "d1", "d2")
    async with whole_rig.router("d2" if lost == "d1" else "d1") as alone:
        whole = await ask_all(alone, requests)
    async with whole_rig.router(*names) as router:
        answers = [Answer() for _ in requests]
        running = [
            asyncio.create_task(ask(router, request, answer))
            for request, answer in zip(requests, answers, strict=True)
        ]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(
                [asyncio.create_task(answer.some.wait()) for answer in answers],
                return_when=asyncio.FIRST_COMPLETED,
            )
        worker = psutil.Process(whole_rig.child(lost).pid)
        processes = [worker, *worker.children(recursive=True)]
        worker.kill()
        await asyncio.gather(*running)
        assert [a.token_ids for a in answers] == [a.token_ids for a in whole]
        _, alive = psutil.wait_procs(processes, timeout=30.0)
        assert not alive
        await all_free(router, len(names) - 1)
