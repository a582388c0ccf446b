"""One rig for each engine, started when the first test of that engine asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.engines.models import write_hybrid, write_limits, write_llama
from tests.integration.engines.rig import SLOTS, Rig
from workers.config import Engine, WorkerConfig
from workers.engine.simulated.times import LinearTimes

VLLM_PYTHON = Path(__file__).parents[3] / ".venv-vllm" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Kind:
    """How workers of one engine are made."""

    write_model: Callable[[Path], None]
    engine: Engine
    vllm_args: tuple[str, ...] = ()
    interpreter: str = ""


KINDS = {
    "native": Kind(write_hybrid, "native"),
    "simulated": Kind(write_limits, "simulated"),
    # Graphs of so small a model take longer to compile than they save.
    "vllm": Kind(write_llama, "vllm", ("--enforce-eager",), str(VLLM_PYTHON)),
}


@pytest.fixture(
    scope="session", params=["native", "simulated", pytest.param("vllm", marks=pytest.mark.vllm)]
)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A prefill and two decode workers of each engine in turn."""
    kind = KINDS[request.param]
    if kind.interpreter and not Path(kind.interpreter).exists():
        pytest.skip("no environment with vLLM: `make vllm-env` builds one in .venv-vllm")
    folder = tmp_path_factory.mktemp(request.param)
    kind.write_model(folder)
    template = WorkerConfig(
        worker_id="",
        role="decode",
        model_path=str(folder),
        model_name="m",
        engine=kind.engine,
        kv_tokens=4096,
        max_requests=SLOTS,
        checkpoint_tokens=32,
        draft_tokens=0,
        simulated=LinearTimes(step_ms=5.0, prompt_token_us=1.0, row_us=1.0, transfer_ms=0.5),
        vllm_args=kind.vllm_args,
        interpreter=kind.interpreter,
    )
    rig = Rig(template, folder)
    try:
        yield rig
    finally:
        rig.stop()


@pytest.fixture
def whole_rig(rig: Rig) -> Rig:
    """With what earlier tests have killed started again."""
    rig.ensure()
    return rig


@pytest.fixture(autouse=True)
def nothing_left_behind(whole_rig: Rig, nothing_left_behind: None) -> None:
    """Watch from here on: workers outlive the tests that first ask for them."""
