"""The load client: `python -m orchestrator.bench.router.load_client`, a process of its own.

As light as a Python client can be, since it shares two cores with the router that it loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from array import array

import grpc
import uvloop
from pydantic import BaseModel, TypeAdapter

from orchestrator.bench.router.messages import Hold, Load, Sample, Window
from protos.tandem.v1 import inference_pb2
from protos.tandem.v1.inference_pb2_grpc import InferenceStub
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer

_CHANNELS = 4
_CHECK_EVERY = 50
_PATIENCE_S = 120.0  # an answer that takes longer has been lost
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class _Target(BaseModel):
    address: str
    vocab_size: int


class LoadClient:
    """Sends requests to one router address over a few connections."""

    def __init__(self, target: _Target) -> None:
        self._vocab_size = target.vocab_size
        self._channels = [
            grpc.aio.insecure_channel(target.address, _OPTIONS) for _ in range(_CHANNELS)
        ]
        self._stubs = [InferenceStub(channel) for channel in self._channels]
        self._number = 0
        self._measuring = False
        self._reset()

    def _reset(self) -> None:
        self._sent = self._finished = self._failed = self._wrong = self._checked = 0
        self._tokens = self._messages = 0
        self._first_error = ""
        self._ttft_ms = array("d")

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    def _request(self, prompt_tokens: int, output_tokens: int) -> inference_pb2.GenerateRequest:
        self._number += 1
        first = self._number * 7919
        prompt = [(first + n) % self._vocab_size for n in range(prompt_tokens)]
        return inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=prompt),
            sampling=inference_pb2.ClientSampling(
                max_tokens=output_tokens, temperature=0.0, ignore_eos=True
            ),
        )

    async def _one(self, prompt_tokens: int, output_tokens: int) -> None:
        request = self._request(prompt_tokens, output_tokens)
        number = self._number
        checked = number % _CHECK_EVERY == 0
        ids: list[int] = []
        stub = self._stubs[number % _CHANNELS]
        measured = self._measuring
        self._sent += measured
        began_s = time.monotonic()
        first = True
        try:
            async for response in stub.Generate(request, timeout=_PATIENCE_S):
                if first:
                    first = False
                    if measured:
                        self._ttft_ms.append((time.monotonic() - began_s) * 1e3)
                if self._measuring:
                    self._messages += 1
                    self._tokens += len(response.delta.token_ids)
                if checked:
                    ids.extend(response.delta.token_ids)
        except grpc.aio.AioRpcError as error:
            self._failed += 1
            self._first_error = self._first_error or f"{error.code().name}: {error.details()}"
            return
        if self._measuring:
            self._finished += 1
        if checked:
            self._checked += 1
            sampling = Sampling(output_tokens)
            prompt = list(request.token_ids.ids)
            self._wrong += ids != expected_answer(prompt, sampling, self._vocab_size, output_tokens)

    async def load(self, load: Load) -> Sample:
        """Run a load; says `Window` on the way."""
        self._reset()
        stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def start(work: asyncio.Task[None]) -> None:
            tasks.add(work)
            work.add_done_callback(tasks.discard)

        async def again() -> None:
            while not stop.is_set() and (load.requests is None or self._number < last):
                await self._one(load.prompt_tokens, load.output_tokens)

        async def arrivals(rate: float) -> None:
            rng, due_s = random.Random(load.seed), time.monotonic()
            while not stop.is_set() and (load.requests is None or self._number < last):
                due_s += rng.expovariate(rate)
                if (wait_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                start(asyncio.create_task(self._one(load.prompt_tokens, load.output_tokens)))

        last = self._number + (load.requests or 0)
        if load.requests_per_s is not None:
            start(asyncio.create_task(arrivals(load.requests_per_s)))
        for _ in range(load.concurrency or 0):
            start(asyncio.create_task(again()))
        if load.requests is None:
            await asyncio.sleep(load.warm_s)
        self._measuring = True
        _say(Window())
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        if load.requests is None:
            await asyncio.sleep(load.measure_s)
        else:
            while tasks:
                await asyncio.wait(tasks)
        window_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
        self._measuring = False
        sample = Sample(
            window_s=window_s,
            sent=self._sent,
            finished=self._finished,
            failed=self._failed,
            wrong=self._wrong,
            checked=self._checked,
            tokens=self._tokens,
            messages=self._messages,
            ttft_ms=_quantiles(self._ttft_ms),
            client_cpu_s=cpu_s,
            first_error=self._first_error,
        )
        stop.set()
        while tasks:
            await asyncio.wait(tasks)
        return sample

    async def hold(self, hold: Hold, until: asyncio.Event) -> None:
        """Keep requests open until `until` is set."""
        calls = []
        for number in range(hold.open_requests):
            call = self._stubs[number % _CHANNELS].Generate(
                self._request(hold.prompt_tokens, hold.output_tokens)
            )
            calls.append(call)
        for call in calls:
            if not isinstance(await call.read(), inference_pb2.GenerateResponse):
                raise RuntimeError(f"a request ended at once: {await call.details()}")
        _say(Window())
        await until.wait()
        for call in calls:
            call.cancel()


def _quantiles(values: array[float]) -> list[float]:
    ordered = sorted(values)
    if not ordered:
        return []
    return [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99)]


def _say(message: BaseModel) -> None:
    print(message.model_dump_json(), flush=True)  # noqa: T201 - the bench reads it


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    orders: TypeAdapter[Load | Hold] = TypeAdapter(Load | Hold)
    client = LoadClient(_Target.model_validate_json(await lines.readline()))
    with contextlib.suppress(asyncio.IncompleteReadError):
        while line := await lines.readline():
            order = orders.validate_json(line)
            if isinstance(order, Load):
                _say(await client.load(order))
            else:
                until = asyncio.Event()
                holding = asyncio.create_task(client.hold(order, until))
                released = asyncio.ensure_future(lines.readline())
                await asyncio.wait({released, holding}, return_when=asyncio.FIRST_COMPLETED)
                until.set()
                await holding
    await client.close()


if __name__ == "__main__":
    uvloop.run(_serve())
