"""What a model is made of, as far as time and memory go.

A model is a stack of layers counted by kind, an embedding, a head, and perhaps a block that drafts
tokens (MTP). Order does not matter for cost, so kinds are counted rather than listed.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.perf.attention import Attention
from workers.perf.mixers import Experts, Mlp, Recurrence


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers by kind. `blocks` is how many layers a pipeline can be cut between."""

    attention: tuple[Attention, ...] = ()
    experts: tuple[Experts, ...] = ()
    mlp: tuple[Mlp, ...] = ()
    recurrence: tuple[Recurrence, ...] = ()
    blocks: int = 1
    other: int = 0

    @property
    def parameters(self) -> int:
        """All parameters; `other` are norms and projections outside the mixers."""
        groups = (*self.attention, *self.experts, *self.mlp, *self.recurrence)
        return self.other + sum(group.layers * group.weights for group in groups)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets."""
        idle = sum(group.layers * (group.weights - group.active) for group in self.experts)
        return self.parameters - idle

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of KV that one token leaves, in attention layers alone."""
        return sum(group.layers * group.cached_elements for group in self.attention)

    @property
    def state_elements(self) -> int:
        """Elements of recurrent state of one sequence, whatever its length."""
        return sum(group.layers * group.state_elements for group in self.recurrence)

    @property
    def conv_elements(self) -> int:
        """Elements of convolution state of one sequence."""
        return sum(group.layers * group.conv_elements for group in self.recurrence)

    @property
    def expert_count(self) -> int:
        """Routed experts of a layer; 0 without experts."""
        return max((group.count for group in self.experts), default=0)

    @property
    def kv_heads(self) -> int:
        """The fewest KV heads of a layer: TPA beyond it duplicates KV."""
        return min((group.kv_heads for group in self.attention), default=1)

    @property
    def heads(self) -> int:
        """The fewest heads of a layer: no tensor parallelism beyond it."""
        heads = [group.heads for group in (*self.attention, *self.recurrence)]
        return min(heads, default=1)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model. `source` says where its shape comes from; `max_tokens` is its longest context.

    `draft` is the MTP block, None without one; `published_weights` names the format of the
    published checkpoint where that is not bfloat16.
    """

    name: str
    hidden: int
    vocab: int
    stack: Stack
    max_tokens: int
    tied: bool = False
    draft: Stack | None = None
    published_weights: str | None = None
    source: str = ""

    @property
    def embedding_parameters(self) -> int:
        """The embedding and, unless tied, the head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters but those of the draft block, as models are named after."""
        return self.stack.parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets; both embedding and head are counted, as published."""
        return self.stack.active_parameters + self.embedding_parameters

    @property
    def draft_parameters(self) -> int:
        return 0 if self.draft is None else self.draft.parameters
