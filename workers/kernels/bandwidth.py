"""`python -m workers.kernels.bandwidth`: how near each kernel comes to copying the bytes it moves.

Exists because a decode step is bound by memory: the time of a kernel says little, the bytes it
must move divided by what the GPU copies in that time say what is left to gain. Shapes are those
of one layer of Nemotron 3 Super in bfloat16, large enough not to fit the caches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from workers.kernels import dispatch

_RUNS = 20
_COPY_BYTES = 1 << 30
_REQUESTS = 64
_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Work:
    """One launch to measure, and the bytes that it must move."""

    name: str
    run: Callable[[], object]
    bytes_moved: int


def _seconds(run: Callable[[], object]) -> float:
    """Median time of one call on the GPU."""
    run()  # compiles
    times = []
    for _ in range(_RUNS):
        start, end = (
            torch.Event("cuda", enable_timing=True),
            torch.Event("cuda", enable_timing=True),
        )
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return median(times)


def _copy() -> Work:
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return Work("copy", lambda: target.copy_(source), 2 * _COPY_BYTES)


def _attention(context_tokens: int, width: int) -> Work:
    from workers.kernels import paged_attention

    heads, kv_heads, head_dim, block_tokens = 32, 2, 128, 16
    table = context_tokens // block_tokens
    kv = torch.zeros(
        _REQUESTS * table,
        2,
        kv_heads,
        block_tokens,
        head_dim,
        dtype=torch.bfloat16,
        device="cuda",
    )
    tables = torch.randperm(len(kv), device="cuda").view(_REQUESTS, table)
    visible = torch.arange(context_tokens - width + 1, context_tokens + 1, device="cuda")
    visible = visible.repeat(_REQUESTS, 1)
    q = torch.randn(_REQUESTS, width, heads, head_dim, dtype=torch.bfloat16, device="cuda")
    return Work(
        f"paged attention, {_REQUESTS} requests of {context_tokens} tokens, window {width}",
        lambda: paged_attention.attend(q, kv, tables, visible),
        paged_attention.bytes_moved(visible, heads, kv_heads, head_dim, 2, context_tokens),
    )


def _mamba(drafts: int, width: int) -> Iterator[Work]:
    from workers.kernels import mamba_window

    heads, head_dim, groups, size, taps = 128, 64, 8, 128, 4
    channels, tokens = heads * head_dim + 2 * groups * size, drafts + width
    # More requests for the convolution alone, whose inputs would else stay in the caches.
    many = 16 * _REQUESTS
    inputs = torch.randn(many, taps - 1 + tokens, channels, dtype=torch.bfloat16, device="cuda")
    weights = torch.randn(taps, channels, dtype=torch.bfloat16, device="cuda")
    yield Work(
        f"convolution, {many} requests, {tokens} tokens",
        lambda: mamba_window.convolve(inputs, weights, None),
        mamba_window.convolution_bytes_moved(many, tokens, channels, taps, 2),
    )
    mixed = torch.randn(_REQUESTS, tokens, channels, dtype=torch.bfloat16, device="cuda")
    steps = torch.rand(_REQUESTS, tokens, heads, device="cuda")
    rate = -torch.rand(heads, device="cuda")
    ssm = torch.zeros(_REQUESTS, heads, head_dim, size, device="cuda")
    slots = torch.arange(_REQUESTS, device="cuda")
    yield Work(
        f"mamba window, {_REQUESTS} requests, {drafts} accepted drafts, window {width}",
        lambda: mamba_window.scan(
            mixed, steps, rate, ssm, slots, groups=groups, kept=drafts + 1, read=width
        ),
        mamba_window.bytes_moved(_REQUESTS, tokens, width, heads, head_dim, groups, size, 2),
    )


def _experts(tokens: int) -> Work:
    from workers.kernels import latent_experts

    experts, chosen, size, narrow = 512, 22, 2688, 1024
    shape = (experts, size, narrow)
    up, down = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    x = torch.randn(tokens, narrow, dtype=torch.bfloat16, device="cuda")
    indices = torch.rand(tokens, experts, device="cuda").topk(chosen).indices
    scales = torch.rand(tokens, chosen, device="cuda")
    return Work(
        f"latent experts, {tokens} tokens",
        lambda: latent_experts.run_experts(x, indices, scales, up, down),
        latent_experts.bytes_moved(indices, size, narrow, 2),
    )


def _all() -> Iterator[Work]:
    """One piece of work at a time, so that its tensors are gone before the next."""
    for width in (1, _WINDOW):
        yield _attention(8192, width)
    for drafts, width in ((0, 1), (_WINDOW - 1, _WINDOW)):
        yield from _mamba(drafts, width)
    for tokens in (1, _REQUESTS, _REQUESTS * _WINDOW):
        yield _experts(tokens)


def main() -> int:
    """Measure and print; 2 where there is nothing to measure on."""
    if not torch.cuda.is_available():
        sys.stderr.write("no GPU is available: the bandwidth of kernels is measured on one\n")
        return 2
    if not dispatch.has_triton():
        sys.stderr.write("triton is not installed: kernels cannot be compiled\n")
        return 2
    copy = _copy()
    rate = copy.bytes_moved / _seconds(copy.run)
    del copy
    sys.stdout.write(f"{torch.cuda.get_device_name()}: copies {rate / 1e9:.0f} GB/s\n")
    for work in _all():
        seconds = _seconds(work.run)
        sys.stdout.write(
            f"{work.name}: {work.bytes_moved / 1e6:.1f} MB in {seconds * 1e6:.1f} us, "
            f"{work.bytes_moved / seconds / rate:.0%} of copy bandwidth\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
