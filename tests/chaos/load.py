"""A load client that remembers what it was answered, and what it should have been."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from protos.tandem.v1 import inference_pb2
from protos.tandem.v1.common_pb2 import REASON_LENGTH, ReasonCode
from tests.chaos.rig import Router

# What a router may say to a request that it has not begun: come again later.
_LATER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request. A client that leaves does so after so many tokens."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    leaves_after: int | None = None

    @property
    def message(self) -> inference_pb2.GenerateRequest:
        return inference_pb2.GenerateRequest(
            request_id=f"chaos-{self.number}",
            token_ids=inference_pb2.TokenIds(ids=self.prompt),
            sampling=inference_pb2.ClientSampling(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                ignore_eos=True,
            ),
        )


def requests(
    rng: random.Random,
    vocab: int,
    prompts: tuple[int, int],
    answers: tuple[int, int],
    leavers: float,
    sampled: float,
) -> Iterator[Wanted]:
    """Requests without end; a third of them begin like others.

    None of a native engine's are to be `sampled`: where one random number stands between two of
    2,000 tokens may turn on the last bit of a sum, and so on who else is in the batch.
    """
    shared = tuple(rng.randrange(5, vocab) for _ in range(prompts[1] // 2))
    number = 0
    while True:
        length, max_tokens = rng.randint(*prompts), rng.randint(*answers)
        prompt = tuple(rng.randrange(5, vocab) for _ in range(length))
        if rng.random() < 0.33:
            prompt = (*shared, *prompt)[:length]
        leaves = rng.randrange(max_tokens) if rng.random() < leavers else None
        temperature = 1.0 if rng.random() < sampled else 0.0
        yield Wanted(number, prompt, max_tokens, temperature, rng.randrange(1 << 30), leaves)
        number += 1


@dataclass(slots=True)
class Outcome:
    """What came of one request."""

    wanted: Wanted
    token_ids: list[int] = field(default_factory=list)
    ends: list[ReasonCode.ValueType] = field(default_factory=list)
    error: str = ""
    refusals: list[str] = field(default_factory=list)  # by a router that had not begun it

    def problem(self, expected: Sequence[int]) -> str:
        """What is wrong with it; empty when nothing is."""
        wanted = self.wanted
        if self.error:
            return self.error
        if self.token_ids != list(expected[: len(self.token_ids)]):
            return f"wrong tokens: {self.token_ids} instead of {list(expected)}"
        if wanted.leaves_after is None:
            if self.ends != [REASON_LENGTH] or len(self.token_ids) != wanted.max_tokens:
                return f"ended {self.ends} after {len(self.token_ids)} of {wanted.max_tokens}"
        elif len(self.token_ids) < wanted.leaves_after:
            return f"{len(self.token_ids)} tokens where it left after {wanted.leaves_after}"
        return ""


async def ask(router: Router, wanted: Wanted, patience_s: float, again: bool = True) -> Outcome:
    """Send one request and read its answer; `again` if the router is not there or asks for it."""
    outcome = Outcome(wanted)
    try:
        async with asyncio.timeout(patience_s):
            # As a client does that is told to come again.
            while not await _answered(router, outcome) and again:  # noqa: ASYNC110
                await asyncio.sleep(_AGAIN_S)
    except TimeoutError:
        outcome.error = f"no end within {patience_s:g} s, {len(outcome.token_ids)} tokens came"
    return outcome


async def _answered(router: Router, outcome: Outcome) -> bool:
    wanted = outcome.wanted
    call = router.inference.Generate(wanted.message)
    try:
        async for response in call:
            if response.HasField("finished"):
                outcome.ends.append(response.finished.reason)
            elif outcome.ends:
                outcome.error = "tokens came after the end"
            outcome.token_ids.extend(response.delta.token_ids)
            if wanted.leaves_after is not None and len(outcome.token_ids) > wanted.leaves_after:
                return True
    except grpc.aio.AioRpcError as error:
        if error.code() in _LATER and not outcome.token_ids:
            outcome.refusals.append(error.details() or error.code().name)
            return False
        outcome.error = (
            f"{error.code().name} after {len(outcome.token_ids)} tokens: {error.details()}"
        )
    finally:
        call.cancel()
    return True


async def load(
    rng: random.Random,
    routers: Sequence[Router],
    stream: Iterator[Wanted],
    per_s: float,
    seconds: float,
    patience_s: float,
) -> list[Outcome]:
    """Requests at random moments for so long; returns when each of them has ended."""
    loop = asyncio.get_running_loop()
    begin_s, due_s = loop.time(), 0.0
    tasks = []
    while due_s < seconds:
        await asyncio.sleep(begin_s + due_s - loop.time())
        tasks.append(asyncio.create_task(ask(rng.choice(routers), next(stream), patience_s)))
        due_s += rng.expovariate(per_s)
    return list(await asyncio.gather(*tasks))


def summary(outcomes: Sequence[Outcome]) -> str:
    ends = Counter(ReasonCode.Name(reason) for one in outcomes for reason in one.ends)
    refusals = Counter(why for one in outcomes for why in one.refusals)
    return f"{len(outcomes)} requests, ends {dict(ends)}, refused at first {dict(refusals)}"
