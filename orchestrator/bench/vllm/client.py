"""The same load for both servers: OpenAI completions, streamed, a fixed number open at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass

import aiohttp

_CHECKED_STATUS = 200
_PATIENCE = aiohttp.ClientTimeout(total=900.0)


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` of random tokens, `concurrency` of them open at any time."""

    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one round: output tokens a second, medians of the time to the first chunk and of the mean
    gap between tokens after it, both in ms."""

    tokens_per_s: float
    ttft_ms: float
    itl_ms: float


async def run_load(url: str, model: str, vocab_size: int, load: Load, seed: int) -> Reading:
    """Send everything once. Raises aiohttp.ClientError for what is not answered whole."""
    waiting = iter(range(load.requests))
    times: list[tuple[float, float]] = []

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in waiting:
            first = (seed * load.requests + number) * 7919
            prompt = [3 + (first + 31 * at) % (vocab_size - 3) for at in range(load.prompt_tokens)]
            times.append(await _one(session, url, model, prompt, load.output_tokens))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=_PATIENCE) as session:
        began_s = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(load.concurrency)))
        seconds = time.perf_counter() - began_s
    ttft_s = statistics.median(first for first, _ in times)
    itl_s = statistics.median(rest for _, rest in times) / (load.output_tokens - 1)
    return Reading(load.requests * load.output_tokens / seconds, ttft_s * 1e3, itl_s * 1e3)


async def _one(
    session: aiohttp.ClientSession, url: str, model: str, prompt: list[int], output_tokens: int
) -> tuple[float, float]:
    """Seconds to the first chunk, and from there to the last."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began_s = time.perf_counter()
    first_s = last_s = 0.0
    usage = b""
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        if answer.status != _CHECKED_STATUS:
            raise aiohttp.ClientError(f"{url}: {answer.status} {await answer.text()}")
        async for line in answer.content:
            if b'"completion_tokens"' in line:
                usage = line
            elif line.startswith(b"data: {"):
                last_s = time.perf_counter()
                first_s = first_s or last_s
    if f'"completion_tokens":{output_tokens}'.encode() not in usage.replace(b" ", b""):
        raise aiohttp.ClientError(f"{url}: not {output_tokens} tokens: {usage[:200]!r}")
    return first_s - began_s, last_s - first_s
