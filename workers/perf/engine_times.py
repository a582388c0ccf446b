"""Steps of decode and reading of prompts, put together from forward passes.

`PhaseModel` binds one model, device, precision and efficiency; its methods take arrays of
candidates. Pipeline stages work on different batches at the same time, drafts are passes of their
own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.efficiency import Efficiency
from workers.perf.forward import Batch, Forward, decoding, reading
from workers.perf.hardware import HardwareSpec
from workers.perf.layouts import Layouts
from workers.perf.meter import Times
from workers.perf.model_spec import ModelSpec
from workers.perf.precision import Precision


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an instance in which every sequence advances by one window.

    `step_s` from one window to the next of a sequence; `parts` as `Times` has them, where asked.
    """

    step_s: Floats
    times: Times


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading a batch of prompts: `read_s` from start to first token, `busy_s` until the first
    pipeline stage is free for the next batch."""

    read_s: Floats
    busy_s: Floats
    times: Times


class PhaseModel:
    """Times of one model on one kind of device."""

    def __init__(
        self,
        model: ModelSpec,
        hardware: HardwareSpec,
        precision: Precision,
        efficiency: Efficiency,
    ) -> None:
        self.model = model
        self.hardware = hardware
        self.precision = precision
        self.efficiency = efficiency
        head = model.vocab * model.hidden
        self.backbone = Forward(model.stack, model.hidden, head, hardware, precision, efficiency)
        self.drafter = (
            None
            if model.draft is None
            else Forward(model.draft, model.hidden, head, hardware, precision.of_draft, efficiency)
        )

    def step(
        self,
        layouts: Layouts,
        sequences: Floats,
        context: Floats,
        draft_tokens: Floats,
        *,
        prompt_tokens: Floats | None = None,
        prompt_context: Floats | None = None,
        detailed: bool = False,
    ) -> Step:
        """One decode step of `sequences` sequences an instance holds, over all its stages.

        MTP drafts `draft_tokens` tokens, one pass of the draft block for each, and verifies them
        with the next in one pass (Nemotron 3 Super, arXiv 2604.12374, MTP). With `prompt_tokens` a
        chunk of prompts is read in the same pass (colocated serving).
        """
        each = sequences / layouts.pp
        none: Floats = np.zeros(())
        chunk = none if prompt_tokens is None else prompt_tokens
        reach = none if prompt_context is None else prompt_context
        batch = Batch(each, draft_tokens + 1.0, context, chunk, reach, np.minimum(chunk, 1.0))
        times = self.backbone.pass_times(layouts, batch, detailed=detailed)
        stage_s = times.total_s * layouts.stage_share(self.model.stack.blocks)
        sent_s = self.backbone.send_s(layouts, batch.tokens)
        overhead = self.efficiency
        step_s = layouts.pp * (stage_s + overhead.step_s) + sequences * overhead.sequence_s
        step_s = step_s + (layouts.pp - 1) * sent_s + np.minimum(chunk, 1.0) * overhead.prompt_s
        parts = dict(times.parts)
        if detailed:
            parts["pipeline", "communication"] = (layouts.pp - 1) * sent_s
            parts["steps", "overhead"] = step_s - layouts.pp * stage_s
        if self.drafter is not None and np.any(draft_tokens):
            draft = self.drafter.pass_times(layouts, decoding(each, np.ones(()), context))
            drafted_s = draft_tokens * layouts.pp * (draft.total_s + overhead.draft_s)
            step_s = step_s + drafted_s
            if detailed:
                parts["drafts", "memory"] = drafted_s
        return Step(step_s, Times(np.asarray(times.total_s), parts))

    def read(
        self,
        layouts: Layouts,
        prompts: Floats,
        tokens: float,
        cached_tokens: float,
        chunk_tokens: Floats,
        *,
        drafts: bool = False,
        detailed: bool = False,
    ) -> Reading:
        """Read `prompts` prompts of `tokens` tokens, `cached_tokens` of which are there already.

        With `drafts` the draft block on the last stage reads them too, for its own KV.

        Chunks of `chunk_tokens` tokens of each prompt follow each other through the pipeline
        stages: chunked pipeline parallelism takes the sum of all chunks in one stage and the last
        chunk in the others (Beyond the Buzz, arXiv 2506.05508, section 3).
        """
        fresh = max(tokens - cached_tokens, 1.0)
        chunks = np.ceil(fresh / np.minimum(chunk_tokens, fresh))
        each = prompts * (fresh / chunks)
        middle = np.asarray(cached_tokens + fresh / 2.0)
        batch = reading(prompts, each, middle)
        times = self.backbone.pass_times(layouts, batch, detailed=detailed)
        share = layouts.stage_share(self.model.stack.blocks)
        sent_s = self.backbone.send_s(layouts, each)
        overhead_s = self.efficiency.step_s + prompts * self.efficiency.prompt_s
        parts = dict(times.parts)
        if drafts and self.drafter is not None:
            drafted_s = self.drafter.pass_times(layouts, batch).total_s
            overhead_s = overhead_s + drafted_s
            if detailed:
                parts["drafts", "compute"] = drafted_s
        mean_s = times.total_s * share + sent_s + overhead_s
        last_s = mean_s
        if np.any(layouts.pp > 1):
            end = reading(prompts, each, tokens - fresh / chunks / 2.0)
            last_s = self.backbone.pass_times(layouts, end).total_s * share + sent_s + overhead_s
        busy_s = chunks * mean_s
        read_s = busy_s + (layouts.pp - 1) * last_s
        return Reading(read_s, busy_s, Times(times.total_s, parts))
