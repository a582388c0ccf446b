"""How much memory weights and sequences take on the fullest device of every candidate layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.perf.arrays import Floats
from workers.perf.forward import kv_share
from workers.perf.layouts import Layouts
from workers.perf.model_spec import ModelSpec, Stack
from workers.perf.precision import Precision

# Left for activations, communication buffers and the runtime; engines default to about as much
# (vLLM's gpu_memory_utilization is 0.9).
RESERVED_SHARE = 0.1
_CONV_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class SequenceBytes:
    """State of one sequence, all layers and ranks together.

    `kv` is by kind of attention layer; Mamba layers add a constant and no KV.
    """

    kv: float
    state: float
    draft: float

    @property
    def total(self) -> float:
        return self.kv + self.state + self.draft


def kv_bytes(stack: Stack, precision: Precision, tokens: float) -> float:
    """KV of `tokens` tokens in the attention layers; a sliding window bounds what a layer keeps."""
    elements = sum(
        group.layers
        * group.cached_elements
        * (tokens if group.window is None else min(tokens, group.window))
        for group in stack.attention
    )
    return elements * precision.kv_bytes


def sequence_bytes(model: ModelSpec, precision: Precision, tokens: float) -> SequenceBytes:
    """What one sequence of `tokens` tokens occupies, and what a hand-off has to carry.

    KV for attention layers alone; recurrent and convolution state whatever the length (Nemotron 3
    Super, arXiv 2604.12374: 4,096 elements of KV a token and 41.94 M elements of state); for MTP
    the KV of its own attention layer and one hidden state.
    """
    stack = model.stack
    state = stack.state_elements * precision.state_bytes + stack.conv_elements * _CONV_BYTES
    draft = 0.0
    if model.draft is not None:
        draft = kv_bytes(model.draft, precision, tokens)
        draft += model.hidden * precision.activation_bytes
    return SequenceBytes(kv_bytes(stack, precision, tokens), state, draft)


def weight_bytes(
    model: ModelSpec, layouts: Layouts, precision: Precision, *, drafts: bool = True
) -> Floats:
    """Bytes of weights on the fullest device.

    Stages hold whole layers; the embedding and the head are on the first and last stage, the draft
    block on the last.
    """
    share = layouts.stage_share(model.stack.blocks)
    result = _stack_bytes(model.stack, layouts, precision) * share
    ends = model.embedding_parameters * precision.embedding.bytes / layouts.group
    result = result + np.where(layouts.pp > 1, ends / (1.0 if model.tied else 2.0), ends)
    if drafts and model.draft is not None:
        result = result + _stack_bytes(model.draft, layouts, precision.of_draft)
    return result


def _stack_bytes(stack: Stack, layouts: Layouts, precision: Precision) -> Floats:
    """Bytes of all layers of a stack on one rank, shared as `forward.py` times them."""
    total: Floats = np.full(np.shape(layouts.pp), stack.other * precision.attention.bytes)
    holders = np.where(layouts.dp > 1, layouts.group, layouts.tpf * layouts.ep)
    for attention in stack.attention:
        split = (attention.value_up + attention.output) / layouts.group
        heads = attention.query / layouts.tpa + attention.key_value * kv_share(attention, layouts)
        weights = attention.replicated + attention.small + heads + split
        total = total + attention.layers * weights * precision.attention.bytes
    for recurrence in stack.recurrence:
        copies = np.ceil(recurrence.groups / layouts.group) / recurrence.groups
        alone = recurrence.weights - recurrence.shared_input_weights
        weights = alone / layouts.group + recurrence.shared_input_weights * copies
        total = total + recurrence.layers * weights * precision.recurrence.bytes
    for experts in stack.experts:
        routed = experts.count * experts.expert_weights / (layouts.ep * layouts.tpf)
        total = total + experts.layers * routed * precision.experts.bytes
        dense = experts.latent_projections + experts.shared / holders
        total = total + experts.layers * dense * precision.dense.bytes
        total = total + experts.layers * experts.router * precision.attention.bytes
    for mlp in stack.mlp:
        ranks = holders if stack.experts else layouts.tpf * layouts.ep
        total = total + mlp.layers * mlp.weights / ranks * precision.dense.bytes
    return total


def state_bytes(
    model: ModelSpec,
    layouts: Layouts,
    precision: Precision,
    tokens: float,
    *,
    drafts: bool = True,
) -> Floats:
    """Bytes that one sequence of `tokens` tokens takes on each device of its attention group.

    KV heads over TPA (repeated beyond K), tokens over KVP, recurrent heads over all ranks, layers
    over pipeline stages.
    """
    share = layouts.stage_share(model.stack.blocks)
    held = sequence_bytes(model, precision, tokens)
    result = held.state / layouts.group * share
    result = result + _kv_on_rank(model.stack, layouts, precision, tokens) * share
    if drafts and model.draft is not None:
        result = result + _kv_on_rank(model.draft, layouts, precision, tokens)
    return result


def _kv_on_rank(stack: Stack, layouts: Layouts, precision: Precision, tokens: float) -> Floats:
    total: Floats = np.zeros(np.shape(layouts.pp))
    for group in stack.attention:
        kept = tokens if group.window is None else min(tokens, group.window)
        elements = group.layers * group.cached_elements * kept
        total = total + elements * kv_share(group, layouts) / layouts.kvp
    return total * precision.kv_bytes


def largest_batch(free_bytes: Floats, sequence_on_rank_bytes: Floats, layouts: Layouts) -> Floats:
    """Sequences that an instance can hold, a whole number for each data-parallel group."""
    each = np.floor(np.maximum(free_bytes, 0.0) / np.maximum(sequence_on_rank_bytes, 1.0))
    return each * layouts.dp
