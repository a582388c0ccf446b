"""vLLM on CPU as a contender; runs under an interpreter that has vLLM and not Tandem.

Exists apart from the other contenders because it shares nothing with them but the messages (see
`orchestrator.bench.process`): only the standard library and vLLM are imported. vLLM is given its
best conditions on a small machine: the engine in this process (else it keeps a core for its
scheduler), every core for OpenMP, the allocator and the OpenMP runtime that its documentation asks
for, and compiled graphs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import site
import sys
import time
from pathlib import Path
from typing import TextIO, TypedDict

_PREPARED = "TANDEM_BENCH_VLLM_PREPARED"
_BLOCK_BYTES_SLACK = 64 * 2**20


class Load(TypedDict):
    """`orchestrator.bench.messages.Load`, as far as it matters here."""

    model: str
    dtype: str
    max_requests: int
    max_request_tokens: int
    state_bytes: int
    step_tokens: int


class Run(TypedDict):
    """`orchestrator.bench.messages.Run`, as far as it matters here."""

    prompts: list[list[int]]
    output_tokens: list[int]


def _prepared_environment() -> dict[str, str]:
    """This process's environment with what vLLM reads at its start."""
    preload = []
    roots = [Path(root) for root in site.getsitepackages()]
    for pattern in ("vllm/libs/libtcmalloc_minimal*.so*", "../../libiomp5.so"):
        preload += [str(found.resolve()) for root in roots for found in root.glob(pattern)][:1]
    cores = len(os.sched_getaffinity(0))
    return {
        **os.environ,
        _PREPARED: "1",
        "LD_PRELOAD": ":".join(preload),
        "OMP_NUM_THREADS": str(cores),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # Anything that vLLM prints must not get between the messages.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }


class VllmContender:
    """One model in vLLM, run with whole batches of prompts."""

    def __init__(self, load: Load) -> None:
        from vllm import LLM  # type: ignore[import-not-found, unused-ignore]

        self._llm = LLM(
            model=load["model"],
            dtype=load["dtype"],
            skip_tokenizer_init=True,
            max_model_len=load["max_request_tokens"],
            max_num_seqs=load["max_requests"],
            max_num_batched_tokens=max(load["step_tokens"], load["max_request_tokens"]),
            kv_cache_memory_bytes=load["state_bytes"] + _BLOCK_BYTES_SLACK,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self._made = 0

    def run(self, run: Run) -> dict[str, object]:
        """Answer every prompt at once; see `orchestrator.bench.process.Timeline`."""
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        _reset_peak_memory()
        began_s = time.perf_counter()
        rows: dict[str, int] = {}
        for row, (prompt, wanted) in enumerate(
            zip(run["prompts"], run["output_tokens"], strict=True)
        ):
            name = str(self._made)
            self._made += 1
            rows[name] = row
            sampling = SamplingParams(
                temperature=0.0, max_tokens=wanted, ignore_eos=True, detokenize=False
            )
            engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        elapsed_s: list[float] = []
        tokens: list[list[int]] = []
        seen = [0] * len(rows)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            elapsed_s.append(time.perf_counter() - began_s)
            step = [0] * len(rows)
            for output in outputs:
                row = rows[output.request_id]
                made = len(output.outputs[0].token_ids)
                step[row], seen[row] = made - seen[row], made
            tokens.append(step)
        return {"elapsed_s": elapsed_s, "tokens": tokens, "peak_bytes": _peak_memory()}


def _reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _serve(answers: TextIO) -> None:
    """One answer for each line on standard input, until it closes."""
    contender: VllmContender | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                contender = VllmContender(request)
                answer: dict[str, object] = {
                    "versions": {
                        "vllm": importlib.metadata.version("vllm-cpu"),
                        "torch of vllm": importlib.metadata.version("torch"),
                    }
                }
            else:
                assert contender is not None
                answer = contender.run(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the bench reports it as a row
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serve messages; what libraries print goes to standard error."""
    if _PREPARED not in os.environ:
        # The loader reads LD_PRELOAD at the start of a process, so this one starts again.
        arguments = [sys.executable, "-I", __file__]
        os.execve(sys.executable, arguments, _prepared_environment())  # noqa: S606 - ourselves
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(answers)


if __name__ == "__main__":
    main()
