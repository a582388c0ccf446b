"""transformers as a contender: its own model and cache, one forward pass for each step.

All prompts of a batch are equally long, so nothing is padded; a batch runs until its longest answer
is done, which is what a static batch means. It leaves the MTP block out.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import torch
from pydantic import BaseModel
from transformers import NemotronHForCausalLM

from orchestrator.bench.contenders.serving import peak_memory_bytes, reset_peak_memory, serve
from orchestrator.bench.machine import usable_cores
from orchestrator.bench.messages import Load, Loaded, Request, Run, Timeline

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TransformersContender:
    """One model; experts and attention in the implementations that transformers picks itself."""

    def __init__(self) -> None:
        self._model: NemotronHForCausalLM | None = None

    def answer(self, request: Request) -> BaseModel:
        match request:
            case Load():
                torch.set_num_threads(usable_cores())
                self._model = NemotronHForCausalLM.from_pretrained(
                    request.model, dtype=_DTYPES[request.dtype]
                )
                self._model.train(mode=False)
                return Loaded(versions={name: version(name) for name in ("transformers", "torch")})
            case Run():
                return self._run(request)
        raise ValueError(f"transformers is not asked to {request.do}")

    @torch.inference_mode()
    def _run(self, run: Run) -> Timeline:
        assert self._model is not None
        reset_peak_memory()
        requests = len(run.prompts)
        size = run.static_batch or requests
        elapsed_s: list[float] = []
        tokens: list[list[int]] = []
        began_s = time.perf_counter()
        for first in range(0, requests, size):
            batch = range(first, min(first + size, requests))
            fed = torch.tensor([run.prompts[row] for row in batch])
            cache = None
            for made in range(max(run.output_tokens[row] for row in batch)):
                out = self._model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                fed = out.logits[:, -1:].argmax(dim=-1)
                elapsed_s.append(time.perf_counter() - began_s)
                tokens.append(
                    [int(row in batch and made < run.output_tokens[row]) for row in range(requests)]
                )
        return Timeline(elapsed_s=elapsed_s, tokens=tokens, peak_bytes=peak_memory_bytes())


if __name__ == "__main__":
    serve(TransformersContender().answer)
