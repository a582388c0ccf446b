"""On a GPU the model gives the tokens that it gives on a CPU in float32."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.model_checks import SHIPPED, check_windows_through_kernels, greedy
from tests.unit.model.driver import random_prompt
from workers.checkpoint import load_model
from workers.kernels import bandwidth

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("by_kernels", [False, True])
@pytest.mark.parametrize("length", [1, 17, 200])
def test_greedy_tokens_equal_those_of_a_cpu(length: int, by_kernels: bool) -> None:
    on_cpu = load_model(SHIPPED, torch.float32)
    on_gpu = load_model(SHIPPED, torch.float32, "cuda")
    prompt = random_prompt(on_cpu.config.vocab_size, length, seed=length)
    expected = greedy(on_cpu, prompt, 64, by_kernels=False)
    assert greedy(on_gpu, prompt, 64, by_kernels=by_kernels) == expected


def test_windows_and_drafts_equal_those_of_a_cpu() -> None:
    check_windows_through_kernels("cuda", steps=9)


def test_the_bandwidth_command_measures_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert bandwidth.main() == 0
    printed = capsys.readouterr().out
    for name in ("paged attention", "convolution", "mamba window", "latent experts"):
        assert name in printed
