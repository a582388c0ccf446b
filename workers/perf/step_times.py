"""How long the steps of one worker take, cheap enough to be asked for every step.

The simulated engine and the simulator ask this for one layout millions of times, where the planner
asks `engine_times` once for all layouts. What does not depend on the length of contexts is a table
over sequences and prompt tokens; reading KV is linear in the cached tokens and computed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.attention import Attention
from workers.perf.engine_times import PhaseModel
from workers.perf.forward import Batch, Forward
from workers.perf.handoff import exposed_s, sharding_devices, transfer_of
from workers.perf.layouts import Layout, Layouts
from workers.perf.memory import sequence_bytes
from workers.perf.speculation import acceptance_lengths

_GROWTH = 2.0**0.125
_DENSE = 32
_LINEAR = 1e-3


class Piece(NamedTuple):
    """A straight piece of the time of a decode step over the batch's cached tokens `c`, together:
    `base_s + slope_s * c` from where the piece before it ends up to `most_context` tokens."""

    most_context: float
    base_s: float
    slope_s: float


@dataclass(frozen=True, slots=True)
class _Scores:
    """Reading KV in one kind of attention layer: seconds of all its layers, per cached token and
    per pair of a prompt token and a key; `exchange_s` per token that goes through the layers."""

    layers: float
    decode_compute_s: float
    decode_memory_s: float
    pair_s: float
    window: float
    constant_s: float
    latency_s: float
    exchange_s: float

    def time_s(
        self, sequences: float, context: float, pairs: float, tokens: float, parts: float
    ) -> float:
        """`context` cached tokens of all sequences together, `pairs` of prompts."""
        if context > self.window * sequences:
            context = self.window * sequences
        compute_s = self.decode_compute_s * context + self.pair_s * pairs
        memory_s = self.decode_memory_s * context
        work_s = (compute_s if compute_s > memory_s else memory_s) + self.constant_s
        if self.latency_s == 0.0:
            return work_s
        moved_s = self.exchange_s * tokens
        best = work_s + self.latency_s + moved_s
        count = 2.0
        while count <= parts:
            each, sent = work_s / count, self.latency_s + moved_s / count
            piped = count * each + sent if each > sent else count * sent + each
            if piped < best:
                best = piped
            count *= 2.0
        return best

    def is_one_part(self, parts: float) -> bool:
        """Whether nothing is overlapped, so that times are straight lines up to the window."""
        return self.latency_s == 0.0 or parts < 2.0

    def line(self, sequences: float, tokens: float, reaches: bool) -> tuple[float, float]:
        """(base, slope) of `time_s` over `context`, below the window or where it `reaches` it."""
        slope_s = max(self.decode_compute_s, self.decode_memory_s)
        base_s = self.constant_s
        if self.latency_s > 0.0:
            base_s += self.latency_s + self.exchange_s * tokens
        if reaches:
            return base_s + slope_s * self.window * sequences, 0.0
        return base_s, slope_s


class StepTimes:
    """Times of one worker with one layout and draft length.

    Args:
        phase: the model on its device.
        layout: of the worker.
        draft_tokens: drafts in every decode step.
        acceptance_rate: the rate at which a draft is accepted (see `speculation`).
        most_sequences, most_prompt_tokens: of one step; beyond them times are extrapolated.
    """

    def __init__(
        self,
        phase: PhaseModel,
        layout: Layout,
        *,
        draft_tokens: int = 0,
        acceptance_rate: float = 0.0,
        most_sequences: int = 1024,
        most_prompt_tokens: int = 65536,
    ) -> None:
        self._phase = phase
        self._layouts = Layouts.of([layout])
        self._window = draft_tokens + 1.0
        self._parts_share = 1.0 / (layout.dp * layout.pp) if layout.hopb else 0.0
        self._pp = float(layout.pp)
        self.acceptance_length = float(
            acceptance_lengths(acceptance_rate, np.array(float(draft_tokens)))
        )
        self._sequences = _grid(most_sequences)
        self._prompts = _grid(most_prompt_tokens)
        self._table = self._flat(self._sequences, self._prompts, draft_tokens)
        self._rows: list[list[float]] = self._table.tolist()
        self._sequence_list: list[float] = self._sequences.tolist()
        self._prompt_list: list[float] = self._prompts.tolist()
        stage = float(self._layouts.stage_share(phase.model.stack.blocks)[0]) * layout.pp
        self._scores = [
            self._coefficients(phase.backbone, group, stage, stage, self._window, layout)
            for group in phase.model.stack.attention
        ]
        if draft_tokens and phase.drafter is not None:
            self._scores += [
                self._coefficients(
                    phase.drafter, group, draft_tokens * layout.pp, layout.pp, 1.0, layout
                )
                for group in phase.drafter.stack.attention
            ]
        self._devices = sharding_devices(phase.model, self._layouts)
        self._pieces: dict[int, tuple[Piece, ...]] = {}
        self._state_lines = self._lines_of_state()

    def step_s(
        self,
        sequences: int,
        context_tokens: float,
        prompt_tokens: float = 0.0,
        prompt_context: float = 0.0,
    ) -> float:
        """Seconds of one step.

        Args:
            sequences: that decode in it, with `context_tokens` cached tokens together.
            prompt_tokens: of prompts read in it, each attending to `prompt_context` tokens on
                average.
        """
        time_s = self._lookup(sequences, prompt_tokens)
        tokens = sequences * self._window / self._pp + prompt_tokens
        pairs = prompt_tokens * prompt_context
        parts = sequences * self._parts_share
        for scores in self._scores:
            time_s += scores.time_s(sequences, context_tokens, pairs, tokens, parts)
        return time_s

    def decode_pieces(self, sequences: int) -> tuple[Piece, ...]:
        """The time of a step that only decodes, as straight pieces in order; the last has no end.

        Empty where overlapped exchanges (HOP-B) make it bend where only `step_s` knows.
        """
        pieces = self._pieces.get(sequences)
        if pieces is None:
            pieces = self._pieces[sequences] = tuple(self._piecewise(sequences))
        return pieces

    def _piecewise(self, sequences: int) -> list[Piece]:
        parts = sequences * self._parts_share
        if not all(scores.is_one_part(parts) for scores in self._scores):
            return []
        tokens = sequences * self._window / self._pp
        ends = {scores.window * sequences for scores in self._scores} | {float("inf")}
        pieces, begin = [], 0.0
        for end in sorted(ends):
            lines = [
                scores.line(sequences, tokens, scores.window * sequences <= begin)
                for scores in self._scores
            ]
            base_s = self._lookup(sequences, 0.0) + sum(base for base, _ in lines)
            pieces.append(Piece(end, base_s, sum(slope for _, slope in lines)))
            begin = end
        return pieces

    def decode_step_s(self, sequences: int, context_tokens: float) -> float:
        """Seconds until each of `sequences` sequences has its next window."""
        return self.step_s(sequences, context_tokens)

    def prefill_chunk_s(self, tokens: float, read_tokens: float = 0.0) -> float:
        """Seconds to read `tokens` tokens of a prompt of which `read_tokens` are read or cached."""
        return self.step_s(0, 0.0, tokens, read_tokens + tokens / 2.0)

    def decode_run_s(self, sequences: int, context_tokens: float, steps: int) -> float:
        """Seconds of `steps` decode steps of the same sequences, in closed form.

        Every step adds an acceptance length to each context; times are piecewise linear in it, so a
        piece costs its mean times its length.
        """
        growth = sequences * self.acceptance_length
        return self._run(sequences, context_tokens, growth, float(steps))

    def _run(self, sequences: int, context: float, growth: float, steps: float) -> float:
        first = self.step_s(sequences, context)
        last = self.step_s(sequences, context + growth * (steps - 1.0))
        middle = self.step_s(sequences, context + growth * (steps - 1.0) / 2.0)
        if steps <= 2.0 or abs(first + last - 2.0 * middle) <= _LINEAR * middle:
            return steps * (first + 4.0 * middle + last) / 6.0
        half = steps // 2
        return self._run(sequences, context, growth, half) + self._run(
            sequences, context + growth * half, growth, steps - half
        )

    def handoff_bytes(self, prompt_tokens: float) -> float:
        """Bytes that a prompt's state takes on its way to decode, Mamba state included."""
        place = 0
        while prompt_tokens > self._state_lines[place][0]:
            place += 1
        _, base_bytes, token_bytes = self._state_lines[place]
        return base_bytes + token_bytes * prompt_tokens

    def _lines_of_state(self) -> list[tuple[float, float, float]]:
        """(up to so many tokens, bytes, bytes a token): KV grows until the window of its layer is
        full."""
        model, precision = self._phase.model, self._phase.precision
        groups = [*model.stack.attention, *(() if model.draft is None else model.draft.attention)]
        ends = sorted({float(group.window) for group in groups if group.window is not None})
        lines, begin = [], 0.0
        for end in [*ends, math.inf]:
            inside = begin + 1.0 if end == math.inf else end
            low, high = (
                sequence_bytes(model, precision, tokens).total for tokens in (begin, inside)
            )
            slope = (high - low) / (inside - begin)
            lines.append((end, low - slope * begin, slope))
            begin = end
        return lines

    def handoff_s(self, prompt_tokens: float, chunk_tokens: float, read_s: float) -> float:
        """Seconds from the end of prefill until the state has arrived, on a link of one's own.

        Args:
            prompt_tokens: of the prompt, the last `chunk_tokens` of them in the last chunk.
            read_s: how long it was being read, while the rest could be sent.
        """
        phase = self._phase
        held = sequence_bytes(phase.model, phase.precision, prompt_tokens)
        transfer = transfer_of(held, min(chunk_tokens / prompt_tokens, 1.0))
        share = phase.efficiency.link
        times = exposed_s(transfer, np.array(read_s), phase.hardware, share, self._devices)
        return float(times[0])

    def steps_s(self, sequences: Floats, context_tokens: Floats) -> Floats:
        """`decode_step_s` of many steps at once."""
        phase = self._phase
        count = np.full(1, self._window - 1.0)
        mean = context_tokens / np.maximum(sequences, 1.0)
        return phase.step(self._layouts, sequences, mean, count).step_s

    def _lookup(self, sequences: float, prompt_tokens: float) -> float:
        xs, rows = self._sequence_list, self._rows
        i = min(max(bisect_right(xs, sequences) - 1, 0), len(xs) - 2)
        across = (sequences - xs[i]) / (xs[i + 1] - xs[i])
        low, high = rows[i], rows[i + 1]
        if prompt_tokens == 0.0:
            return low[0] + across * (high[0] - low[0])
        ys = self._prompt_list
        j = min(max(bisect_right(ys, prompt_tokens) - 1, 0), len(ys) - 2)
        along = (prompt_tokens - ys[j]) / (ys[j + 1] - ys[j])
        left = low[j] + across * (high[j] - low[j])
        right = low[j + 1] + across * (high[j + 1] - low[j + 1])
        return left + along * (right - left)

    def _flat(self, sequences: Floats, prompts: Floats, draft_tokens: int) -> Floats:
        """Seconds [sequences, prompt tokens] of everything but reading KV."""
        phase, layouts = self._phase, self._layouts
        pp = layouts.pp
        n, chunk = sequences[:, None], prompts[None, :]
        zero: Floats = np.zeros(())
        batch = Batch(n / pp, np.array(self._window), zero, chunk, zero, np.minimum(chunk, 1.0))
        overhead = phase.efficiency
        stage_s = phase.backbone.flat_times(layouts, batch).total_s
        stage_s = stage_s * layouts.stage_share(phase.model.stack.blocks)
        table = pp * (stage_s + overhead.step_s) + n * overhead.sequence_s
        table = table + np.minimum(chunk, 1.0) * overhead.prompt_s
        table = table + (pp - 1) * phase.backbone.send_s(layouts, batch.tokens)
        if draft_tokens and phase.drafter is not None:
            drafting = Batch(n / pp, np.ones(()), zero, zero, zero, zero)
            drafted_s = phase.drafter.flat_times(layouts, drafting).total_s + overhead.draft_s
            table = table + np.where(n > 0, draft_tokens * pp * drafted_s, 0.0)
            given = Batch(zero, zero, zero, chunk, zero, np.minimum(chunk, 1.0))
            given_s = phase.drafter.flat_times(layouts, given).total_s
            table = table + np.where(chunk > 0, pp * given_s, 0.0)
        return table

    def _coefficients(
        self,
        forward: Forward,
        group: Attention,
        passes: float,
        prompt_passes: float,
        window: float,
        layout: Layout,
    ) -> _Scores:
        """What makes the closed form of one kind of attention layer, gone through `passes` times
        by what decodes and `prompt_passes` times by what is read."""
        compute_s, memory_s, pair_s, constant_s = forward.score_slopes(group, self._layouts, window)
        exchange_s = 0.0
        if layout.kvp > 1:
            exchange_s = float(forward.partials_s(group, self._layouts, np.ones(1))[0])
        each = passes * group.layers
        return _Scores(
            layers=group.layers,
            decode_compute_s=compute_s * each / self._pp,
            decode_memory_s=memory_s * each / self._pp,
            pair_s=pair_s * prompt_passes * group.layers,
            window=float("inf") if group.window is None else float(group.window),
            constant_s=constant_s * each,
            latency_s=forward.exchange_latency_s * each if layout.kvp > 1 else 0.0,
            exchange_s=exchange_s * each,
        )


def _grid(most: int) -> Floats:
    """0, 1, 2, ... and then ever wider, up to `most`."""
    wide = np.round(_DENSE * _GROWTH ** np.arange(1, 200))
    return np.append(np.arange(_DENSE + 1.0), wide[wide <= max(most, 2 * _DENSE) * _GROWTH])
