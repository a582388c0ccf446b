"""The shipped model with its kernels against the model on a CPU in float32.

Exists apart from the tests for the same reason as `kernel_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import workers
from tests.unit.model.driver import Driver, random_prompt
from workers.checkpoint import load_model
from workers.kernels import dispatch
from workers.model import HybridModel

SHIPPED = Path(workers.__file__).parent / "checkpoints" / "tandem-tiny"


@contextmanager
def kernels(used: bool) -> Iterator[None]:
    """Make every model use the kernels, or none, wherever its tensors are."""

    def suits(tensor: Tensor) -> bool:
        return used

    with mock.patch.object(dispatch, "suits", suits):
        yield


def check_windows_through_kernels(device: str, *, steps: int) -> None:
    """Windows, accepted drafts, commits and MTP drafts give what the CPU's functions give."""
    plain = load_model(SHIPPED, torch.float32)
    other = plain if device == "cpu" else load_model(SHIPPED, torch.float32, device)
    vocab = plain.config.vocab_size
    prompts = [random_prompt(vocab, length, seed=length) for length in (21, 40)]
    drivers = [Driver(model, requests=2, max_tokens=160) for model in (plain, other)]
    hidden = [
        [driver.prefill(prompt, request=i) for i, prompt in enumerate(prompts)]
        for driver in drivers
    ]
    for driver, rows in zip(drivers, hidden, strict=True):
        for request, prompt in enumerate(prompts):
            driver.draft_prefill(torch.tensor(prompt), rows[request], request=request)
    for step in range(steps):
        width = (3, 1, 8)[step % 3]
        tokens = {i: random_prompt(vocab, width, seed=10 * step + i) for i in range(2)}
        expected = drivers[0].verify(tokens)
        positions = {i: (drivers[0].lengths[i], tokens[i]) for i in range(2)}
        drafted = drivers[0].draft(positions, expected)
        with kernels(True):
            found = drivers[1].verify(tokens)
            _near(found, expected)
            _near(drivers[1].draft(positions, found), drafted)
        for request in range(2):
            for driver in drivers:
                driver.accept(request, max(width - request, 1))
    drivers[0].commit([0, 1])
    with kernels(True):
        drivers[1].commit([0, 1])
    _near(drivers[1].state.ssm, drivers[0].state.ssm)
    _near(drivers[1].state.conv, drivers[0].state.conv)


def greedy(model: HybridModel, prompt: list[int], count: int, *, by_kernels: bool) -> list[int]:
    """Greedy tokens, with the kernels or with the tensor operations."""
    with kernels(by_kernels):
        return Driver(model).greedy(prompt, count)


def _near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=1e-3)
