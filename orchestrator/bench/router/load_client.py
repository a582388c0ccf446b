"""The load client: `python -m orchestrator.bench.router.load_client`, a process of its own.

As light as a Python client can be, since it shares two cores with the router that it loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import sys
import time
from array import array
from collections.abc import Callable

import uvloop
from pydantic import BaseModel, TypeAdapter

from orchestrator.bench.router.connection import Answer, Connection
from orchestrator.bench.router.messages import Hold, Load, Sample, Window
from protos.tandem.v1 import inference_pb2
from workers.engine.commands import Sampling
from workers.engine.simulated.text import expected_answer

_CONNECTIONS = 4
_CHECK_EVERY = 50
_PATIENCE_S = 120  # an answer that takes longer has been lost
_METHOD = f"/{inference_pb2.DESCRIPTOR.services_by_name['Inference'].full_name}/Generate"


class Target(BaseModel):
    address: str
    vocab_size: int


class _Counts:
    """What came back since it was made."""

    def __init__(self) -> None:
        self.sent = self.finished = self.failed = self.wrong = self.checked = 0
        self.tokens = self.messages = 0
        self.first_error = ""
        self.ttft_ms = array("d")


class _Asked:
    """One request under way; its connection tells it what comes."""

    __slots__ = ("_began_s", "_client", "_ended", "_expected", "_ids", "_measured")

    def __init__(
        self, client: LoadClient, expected: list[int] | None, ended: Callable[[], None]
    ) -> None:
        """`expected` is the answer that it must get, if it is to be checked."""
        self._client = client
        self._expected = expected
        self._ended = ended
        self._measured = client.measuring
        self._ids: list[int] = []
        self._began_s: float | None = time.monotonic()

    def message(self, data: bytes) -> None:
        client = self._client
        token_ids = inference_pb2.GenerateResponse.FromString(data).delta.token_ids
        if self._began_s is not None:
            if self._measured:
                client.counts.ttft_ms.append((time.monotonic() - self._began_s) * 1e3)
            self._began_s = None
        if client.measuring:
            client.counts.messages += 1
            client.counts.tokens += len(token_ids)
        if self._expected is not None:
            self._ids.extend(token_ids)

    def ended(self, problem: str) -> None:
        counts = self._client.counts
        if problem:
            counts.failed += 1
            counts.first_error = counts.first_error or problem
        else:
            counts.finished += self._client.measuring
            if self._expected is not None:
                counts.checked += 1
                counts.wrong += self._ids != self._expected
        self._ended()


class _Held:
    """All requests that are to stay open: told of the first token of each, the only one to come."""

    def __init__(self, requests: int) -> None:
        self._left = requests
        self.problem = ""
        self.settled = asyncio.Event()

    def message(self, data: bytes) -> None:
        self._left -= 1
        if self._left == 0:
            self.settled.set()

    def ended(self, problem: str) -> None:
        self.problem = problem or "it has its answer"
        self.settled.set()


class LoadClient:
    """Sends requests to one router address over a few connections."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connections: list[Connection] = []
        self._number = 0
        self._open = 0
        self._all_ended = asyncio.Event()
        self.measuring = False
        self.counts = _Counts()

    async def connect(self) -> None:
        """Open the connections. Raises OSError."""
        for _ in range(_CONNECTIONS):
            self._connections.append(await self._connection())

    async def _connection(self) -> Connection:
        address = self._target.address
        host, _, port = address.rpartition(":")
        connection = Connection(_METHOD, address, _PATIENCE_S)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection, host.strip("[]"), int(port))
        await connection.ready.wait()
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _prompt(self, tokens: int) -> list[int]:
        """The next prompt: no two are alike."""
        self._number += 1
        first, vocab_size = self._number * 7919, self._target.vocab_size
        return [(first + n) % vocab_size for n in range(tokens)]

    def _call(self, prompt: list[int], output_tokens: int, answer: Answer) -> Callable[[], None]:
        """Send a request; returns what breaks it off."""
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=prompt),
            sampling=inference_pb2.ClientSampling(
                max_tokens=output_tokens, temperature=0.0, ignore_eos=True
            ),
        )
        connection = self._connections[self._number % _CONNECTIONS]
        number = connection.call(request.SerializeToString(), answer)
        return functools.partial(connection.cancel, number)

    def _ask(self, load: Load, ended: Callable[[], None]) -> None:
        """Send the next request of a load; `ended` is called at its end."""
        self._open += 1
        self.counts.sent += self.measuring
        prompt, tokens = self._prompt(load.prompt_tokens), load.output_tokens
        expected = None
        if self._number % _CHECK_EVERY == 0:
            vocab_size = self._target.vocab_size
            expected = expected_answer(prompt, Sampling(tokens), vocab_size, tokens)
        self._call(prompt, tokens, _Asked(self, expected, ended))

    async def load(self, load: Load) -> Sample:
        """Run a load; says `Window` on the way."""
        self.counts = _Counts()
        self._all_ended.clear()
        stop = asyncio.Event()
        last = self._number + load.requests if load.requests is not None else sys.maxsize

        def more() -> bool:
            return not stop.is_set() and self._number < last

        def ended() -> None:
            self._open -= 1
            if self._open == 0:
                self._all_ended.set()

        def ended_and_again() -> None:
            if more():
                self._ask(load, ended_and_again)
            ended()

        async def arrivals(rate: float) -> None:
            rng, due_s = random.Random(load.seed), time.monotonic()
            while more():
                due_s += rng.expovariate(rate)
                if (wait_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                self._ask(load, ended)

        arriving = None
        if load.requests_per_s is not None:
            arriving = asyncio.create_task(arrivals(load.requests_per_s))
        for _ in range(load.concurrency or 0):
            if more():
                self._ask(load, ended_and_again)
        if load.requests is None:
            await asyncio.sleep(load.warm_s)
        self.measuring = True
        _say(Window())
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        if load.requests is None:
            await asyncio.sleep(load.measure_s)
        else:
            await self._none_open(arriving)
        sample = self._sample(time.monotonic() - began_s, time.process_time() - began_cpu_s)
        self.measuring = False
        stop.set()
        await self._none_open(arriving)
        return sample

    async def _none_open(self, arriving: asyncio.Task[None] | None) -> None:
        if arriving is not None:
            await arriving
        while self._open:
            self._all_ended.clear()
            await self._all_ended.wait()

    def _sample(self, window_s: float, cpu_s: float) -> Sample:
        counts = self.counts
        return Sample(
            window_s=window_s,
            sent=counts.sent,
            finished=counts.finished,
            failed=counts.failed,
            wrong=counts.wrong,
            checked=counts.checked,
            tokens=counts.tokens,
            messages=counts.messages,
            ttft_ms=_quantiles(counts.ttft_ms),
            client_cpu_s=cpu_s,
            first_error=counts.first_error,
        )

    async def hold(self, hold: Hold, until: asyncio.Event) -> None:
        """Keep requests open until `until` is set."""
        held = _Held(hold.open_requests)
        cancels = [
            self._call(self._prompt(hold.prompt_tokens), hold.output_tokens, held)
            for _ in range(hold.open_requests)
        ]
        await held.settled.wait()
        if held.problem:
            raise RuntimeError(f"a request ended at once: {held.problem}")
        _say(Window())
        await until.wait()
        for cancel in cancels:
            cancel()


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
    client = LoadClient(Target.model_validate_json(await lines.readline()))
    await client.connect()
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
    client.close()


if __name__ == "__main__":
    uvloop.run(_serve())
