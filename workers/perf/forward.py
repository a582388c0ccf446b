"""The time of one forward pass through a stack of layers, for every candidate layout at once.

A pass has sequences that decode and prompts that are read, either of which may be absent: decode,
prefill and colocated serving are the same arithmetic. Products are rooflines of weights read once
and 2 operations for a weight and a token; the other formulas are named where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.perf.arrays import Booleans, Floats
from workers.perf.attention import Attention, LatentAttention
from workers.perf.collectives import Links, overlapped_s
from workers.perf.efficiency import Efficiency, Kind
from workers.perf.hardware import HardwareSpec
from workers.perf.layouts import Layouts
from workers.perf.meter import Meter, Times
from workers.perf.mixers import Experts, Mlp, Recurrence
from workers.perf.model_spec import Stack
from workers.perf.precision import Format, Precision

_LSE_BYTES = 8.0  # a maximum and a sum in float32 for each head (TensorRT-LLM, blog 22)
_CHOICE_BYTES = 8.0  # a candidate token and its logit, when ranks agree on the next token
_CONV_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one pipeline stage works on at a time, all its data-parallel groups together.

    Attributes:
        sequences: that decode; `window` tokens each (1 + drafts), `context` tokens cached on
            average.
        prompt_tokens: of prompts; each attends to `prompt_context` tokens on average.
        prompts: how many prompts they belong to.
    """

    sequences: Floats
    window: Floats
    context: Floats
    prompt_tokens: Floats
    prompt_context: Floats
    prompts: Floats

    @property
    def tokens(self) -> Floats:
        """Tokens that go through the layers."""
        return self.sequences * self.window + self.prompt_tokens


NOTHING: Floats = np.zeros(())


def decoding(sequences: Floats, window: Floats, context: Floats) -> Batch:
    """A batch without prompts."""
    return Batch(sequences, window, context, NOTHING, NOTHING, NOTHING)


def reading(prompts: Floats, tokens: Floats, context: Floats) -> Batch:
    """A batch of prompts alone; `tokens` of all of them together."""
    return Batch(NOTHING, NOTHING, NOTHING, tokens, context, prompts)


class Forward:
    """Forward passes of one stack on one kind of device."""

    def __init__(
        self,
        stack: Stack,
        hidden: int,
        head_weights: int,
        hardware: HardwareSpec,
        precision: Precision,
        efficiency: Efficiency,
    ) -> None:
        self._stack = stack
        self._hidden = hidden
        self._head_weights = head_weights
        self._hardware = hardware
        self._precision = precision
        self._efficiency = efficiency
        self._links = Links(hardware, efficiency.link)

    @property
    def stack(self) -> Stack:
        return self._stack

    def pass_times(self, layouts: Layouts, batch: Batch, *, detailed: bool = False) -> Times:
        """Seconds of all layers and the head; pipeline stages are the caller's business."""
        meter = self._meter(detailed)
        self._add_flat(meter, layouts, batch)
        for group in self._stack.attention:
            self._add_scores(meter, group, layouts, batch)
        return meter.times()

    def flat_times(self, layouts: Layouts, batch: Batch) -> Times:
        """Seconds of everything whose time does not depend on how long contexts are."""
        meter = self._meter(detailed=False)
        self._add_flat(meter, layouts, batch)
        return meter.times()

    def score_slopes(
        self, group: Attention, layouts: Layouts, window: float
    ) -> tuple[float, float, float, float]:
        """Reading KV in one layer of one layout, which is linear: seconds of computing and of
        memory for each cached token, seconds for each pair of a prompt token and a key, and
        constant seconds."""
        efficiency, precision = self._efficiency, self._precision
        rate = self._hardware.rate(precision.attention_math) * efficiency.compute["attention"]
        bandwidth = self._hardware.memory_bytes_per_s * efficiency.memory["attention"]
        ranks = float(layouts.dp[0] * layouts.kvp[0])
        pair_s = 1.0 / (ranks * float(layouts.tpa[0]) * rate)
        held = group.cached_elements * precision.kv_bytes * float(kv_share(group, layouts)[0])
        return (
            window * group.decode_flops_per_pair * pair_s,
            held / (ranks * bandwidth),
            group.prefill_flops_per_pair * pair_s,
            efficiency.least_s("attention"),
        )

    def partials_s(self, group: Attention, layouts: Layouts, tokens: Floats) -> Floats:
        """Seconds in which KVP ranks send each other partial outputs in one layer, without latency.

        One all-to-all over query heads; its volume does not depend on the context (Helix,
        arXiv 2507.07120, section 2.1).
        """
        own = tokens / layouts.dp
        elements = group.partial_elements * self._precision.activation_bytes
        sent = own * (elements + group.heads * _LSE_BYTES) / layouts.tpa
        return sent * (layouts.kvp - 1) / (layouts.kvp * self._links.up_bytes_per_s)

    @property
    def exchange_latency_s(self) -> float:
        """Latency of an exchange inside an attention group."""
        return self._links.up_latency_s

    def send_s(self, layouts: Layouts, tokens: Floats) -> Floats:
        """Seconds from one pipeline stage to the next."""
        per_rank = tokens / layouts.dp * self._hidden * self._precision.activation_bytes
        return np.where(layouts.pp > 1, self._links.send_s(per_rank, layouts.ranks), 0.0)

    def _meter(self, detailed: bool) -> Meter:
        return Meter(self._hardware, self._efficiency, detailed)

    def _add_flat(self, meter: Meter, layouts: Layouts, batch: Batch) -> None:
        stack = self._stack
        for attention in stack.attention:
            self._add_projections(meter, attention, layouts, batch)
        for recurrence in stack.recurrence:
            self._add_recurrence(meter, recurrence, layouts, batch)
        for experts in stack.experts:
            self._add_experts(meter, experts, layouts, batch)
        for mlp in stack.mlp:
            self._add_mlp(meter, mlp, layouts, batch)
        if self._head_weights:
            self._add_head(meter, layouts, batch)

    def _product(
        self,
        meter: Meter,
        kind: Kind,
        layers: float,
        tokens: Floats,
        weights: Floats | float,
        weight_format: Format,
    ) -> None:
        meter.operation(
            kind, layers, 2.0 * tokens * weights, weight_format.math, weights * weight_format.bytes
        )

    def _add_projections(
        self, meter: Meter, group: Attention, layouts: Layouts, batch: Batch
    ) -> None:
        """QKV over TPA ranks, repeated KVP-fold; the output over all ranks, then an all-reduce."""
        own = batch.tokens / layouts.dp
        weights_format = self._precision.attention
        weights = (
            group.replicated
            + group.query / layouts.tpa
            + group.key_value * kv_share(group, layouts)
        )
        self._product(meter, "projections", group.layers, own, weights, weights_format)
        after = (group.value_up + group.output) / layouts.group
        self._product(meter, "projections", group.layers, own, after, weights_format)
        self._reduce(meter, group.layers, own, layouts)

    def _reduce(self, meter: Meter, layers: float, own: Floats, layouts: Layouts) -> None:
        size = own * self._hidden * self._precision.activation_bytes
        meter.exchange("all-reduce", layers * self._links.all_reduce_s(size, layouts.group))

    def _scores(self, meter: Meter, group: Attention, layouts: Layouts, batch: Batch) -> Floats:
        """KV is read once for all tokens of a window; operations count pairs of query and key.

        The bytes are those of Helix, appendix A: B x 2 ceil(K/TPA) Hsz x S/KVP (arXiv 2507.07120).
        Prompts attend by FlashAttention, which is bound by its operations; their KV is counted
        once for each pass.
        """
        reach, read = batch.context, batch.prompt_context
        if group.window is not None:
            reach, read = np.minimum(reach, group.window), np.minimum(read, group.window)
        per_rank = 1.0 / (layouts.dp * layouts.kvp)
        pairs = batch.sequences * batch.window * reach * per_rank
        prompt_pairs = batch.prompt_tokens * read * per_rank
        flops = group.decode_flops_per_pair * pairs + group.prefill_flops_per_pair * prompt_pairs
        cached = (batch.sequences * reach + batch.prompts * read) * per_rank
        element_bytes = group.cached_elements * self._precision.kv_bytes
        return meter.operation(
            "attention",
            group.layers,
            flops / layouts.tpa,
            self._precision.attention_math,
            cached * element_bytes * kv_share(group, layouts),
        )

    def _add_scores(self, meter: Meter, group: Attention, layouts: Layouts, batch: Batch) -> None:
        scores_s = self._scores(meter, group, layouts, batch)
        if not np.any(layouts.kvp > 1):
            return
        latency_s = self._links.up_latency_s
        transfer_s = self.partials_s(group, layouts, batch.tokens)
        each_s = scores_s / group.layers
        parts = np.where(layouts.hopb, batch.sequences / layouts.dp, 1.0)
        both_s = overlapped_s(each_s, latency_s, transfer_s, parts)
        exposed_s = np.where(layouts.kvp > 1, both_s - each_s, 0.0)
        meter.exchange("partial outputs", group.layers * exposed_s)

    def _add_recurrence(
        self, meter: Meter, group: Recurrence, layouts: Layouts, batch: Batch
    ) -> None:
        """Heads over all ranks of a group; B and C repeated where ranks outnumber their groups.

        State is read and written once in a pass, however many drafts it verifies: the window's
        inputs are kept and folded in later (design of this engine, `docs/engine.md`).
        """
        ranks = layouts.group
        own = batch.tokens / layouts.dp
        shared_share = np.ceil(group.groups / ranks) / group.groups
        split = (group.input_weights - group.shared_input_weights + group.output_weights) / ranks
        weights = split + group.shared_input_weights * shared_share
        weights_format = self._precision.recurrence
        self._product(meter, "projections", group.layers, own, weights, weights_format)
        held = (batch.sequences + batch.prompts) / layouts.dp
        state = group.state_elements * self._precision.state_bytes
        moved = held * 2.0 * (state + group.conv_elements * _CONV_BYTES) / ranks
        decoded = batch.sequences * batch.window / layouts.dp * (group.decode_flops / ranks)
        read = batch.prompt_tokens / layouts.dp * (group.prefill_flops / ranks)
        # One token at a time is vector work in float32, a scan by chunks is matrix products.
        faster = self._hardware.rate("fp32") / self._hardware.rate("bf16")
        meter.operation("recurrence", group.layers, decoded + faster * read, "fp32", moved)
        self._reduce(meter, group.layers, own, layouts)

    def _add_experts(self, meter: Meter, group: Experts, layouts: Layouts, batch: Batch) -> None:
        """Experts over EP ranks, each over TPF; tokens meet experts evenly and independently.

        One DP group: its ranks all have the tokens after the all-reduce, so nothing is dispatched;
        partial sums of a latent dimension are reduced before they are projected up, then everything
        is all-reduced. Several: tokens go to the ranks of their experts and back; a rank is sent
        a token once (DeepEP), so it has ep (1 - (1 - 1/ep)^k) destinations.
        """
        precision = self._precision
        tokens = batch.tokens
        own = tokens / layouts.dp
        apart = layouts.dp > 1
        holders = np.where(apart, layouts.group, layouts.tpf * layouts.ep)
        sliced = np.where(apart, own / layouts.group, own)
        dense = precision.dense
        self._product(meter, "projections", group.layers, sliced, group.router, precision.attention)
        if group.latent is not None:
            half = group.latent_projections / 2
            up = half / np.where(apart, 1, holders)
            self._product(meter, "projections", group.layers, sliced, half + up, dense)
        if group.shared:
            self._product(meter, "projections", group.layers, own, group.shared / holders, dense)
        met = 1.0 - (1.0 - group.top_k / group.count) ** tokens
        loaded = group.count / layouts.ep * met * (group.expert_weights / layouts.tpf)
        flops = 2.0 * tokens * (group.top_k * group.expert_weights) / (layouts.ep * layouts.tpf)
        meter.operation(
            "experts", group.layers, flops, precision.experts.math, loaded * precision.experts.bytes
        )
        self._exchange_tokens(meter, group, layouts, own, apart)

    def _exchange_tokens(
        self, meter: Meter, group: Experts, layouts: Layouts, own: Floats, apart: Booleans
    ) -> None:
        links, precision = self._links, self._precision
        whole = own * self._hidden * precision.activation_bytes
        together_s = links.all_reduce_s(whole, layouts.tpf * layouts.ep)
        if group.latent is not None:
            routed = own * group.width * precision.activation_bytes
            together_s = together_s + links.all_gather_s(routed, layouts.tpf * layouts.ep)
        if not np.any(apart):
            meter.exchange("all-reduce", group.layers * together_s)
            return
        copies = layouts.ep * (1.0 - (1.0 - 1.0 / layouts.ep) ** group.top_k) * layouts.tpf
        sent = own / layouts.group * copies * group.width
        apart_s = links.all_to_all_s(sent * precision.dispatch_bytes, layouts.stage)
        apart_s = apart_s + links.all_to_all_s(sent * precision.activation_bytes, layouts.stage)
        gather = links.all_reduce_s if group.shared else links.all_gather_s
        apart_s = apart_s + gather(whole, layouts.group)
        meter.exchange("all-reduce", group.layers * np.where(apart, 0.0, together_s))
        meter.exchange("dispatch and combine", group.layers * np.where(apart, apart_s, 0.0))

    def _add_mlp(self, meter: Meter, group: Mlp, layouts: Layouts, batch: Batch) -> None:
        """Dense layers over all ranks. With several DP groups a model without experts gathers the
        tokens of all and scatters the sums; one with experts keeps to the ranks of a group."""
        own = batch.tokens / layouts.dp
        size_bytes = self._hidden * self._precision.activation_bytes
        apart = layouts.dp > 1
        if self._stack.experts:
            ranks = np.where(apart, layouts.group, layouts.tpf * layouts.ep)
            tokens, time_s = own, self._links.all_reduce_s(own * size_bytes, ranks)
        else:
            ranks = layouts.tpf * layouts.ep
            tokens = np.where(apart, batch.tokens, own)
            gathered_s = 2.0 * self._links.all_gather_s(tokens * size_bytes, ranks)
            time_s = np.where(apart, gathered_s, self._links.all_reduce_s(own * size_bytes, ranks))
        weights = group.weights / ranks
        self._product(meter, "projections", group.layers, tokens, weights, self._precision.dense)
        meter.exchange("all-reduce", group.layers * time_s)

    def _add_head(self, meter: Meter, layouts: Layouts, batch: Batch) -> None:
        """Logits of every decoded token and of each prompt's last; the vocabulary over a group."""
        wanted = (batch.sequences * batch.window + batch.prompts) / layouts.dp
        weights = self._head_weights / layouts.group
        self._product(meter, "head", 1, wanted, weights, self._precision.embedding)
        chosen = wanted * _CHOICE_BYTES * layouts.group
        meter.exchange("all-reduce", self._links.all_gather_s(chosen, layouts.group))


def kv_share(group: Attention, layouts: Layouts) -> Floats:
    """Share of a layer's KV heads that one rank holds: ceil(K/TPA)/K (Helix, appendix A).

    Beyond TPA = K ranks repeat each other's KV; latent attention has one head in this sense.
    """
    if isinstance(group, LatentAttention):
        return np.ones(np.shape(layouts.tpa))
    return np.ceil(group.kv_heads / layouts.tpa) / group.kv_heads
