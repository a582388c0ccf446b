"""The two kinds of attention layers, as counts of weights, cached elements and operations.

Both give the same figures under the same names, so that timing need not know which it has. Weights
are split by how ranks share them: `replicated` on every rank, `query` and `key_value` over TPA,
`value_up` and `output` over all ranks of the attention group (Helix, arXiv 2507.07120, section 2.1:
QKV sharded TPA-fold and replicated KVP-fold, the projection after attention over N = KVP x TPA).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Layers of multi-head, grouped-query or multi-query attention.

    `window` is how many tokens a layer looks back, None for all. `gated` layers project a gate
    beside each query (Qwen3-Next, Qwen3.5).
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    bias: bool = False
    gated: bool = False
    norms: int = 0

    @property
    def replicated(self) -> int:
        return 0

    @property
    def query(self) -> int:
        return self.hidden * self.heads * self.head_dim * (2 if self.gated else 1)

    @property
    def key_value(self) -> int:
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def value_up(self) -> int:
        return 0

    @property
    def output(self) -> int:
        return self.heads * self.head_dim * self.hidden

    @property
    def small(self) -> int:
        """Biases and norms inside a layer."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim + self.hidden
        return self.norms + (biases if self.bias else 0)

    @property
    def cached_elements(self) -> int:
        """Elements of KV that one token leaves in one layer: keys and values."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def decode_flops_per_pair(self) -> int:
        """Operations of one layer for one query token and one key: two products of head_dim."""
        return 4 * self.heads * self.head_dim

    @property
    def prefill_flops_per_pair(self) -> int:
        return self.decode_flops_per_pair

    @property
    def partial_elements(self) -> int:
        """Elements of a partial output that KVP ranks exchange for one query token."""
        return self.heads * self.head_dim

    @property
    def weights(self) -> int:
        """Parameters of one layer, without its input norm."""
        return self.query + self.key_value + self.output + self.small


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Layers of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Decode works in the latent space with the up-projections absorbed, so all heads share one cached
    vector (K = 1 for sharding) of `kv_rank + rope_dim` elements; prefill expands keys and values.
    """

    layers: int
    hidden: int
    heads: int
    query_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @property
    def kv_heads(self) -> int:
        return 1

    @property
    def window(self) -> None:
        return None

    @property
    def replicated(self) -> int:
        down = self.hidden * (self.kv_rank + self.rope_dim)
        return down + self.hidden * self.query_rank

    @property
    def query(self) -> int:
        width = self.nope_dim + self.rope_dim
        source = self.query_rank if self.query_rank else self.hidden
        return source * self.heads * width + self.kv_rank * self.heads * self.nope_dim

    @property
    def key_value(self) -> int:
        return 0

    @property
    def value_up(self) -> int:
        return self.kv_rank * self.heads * self.value_dim

    @property
    def output(self) -> int:
        return self.heads * self.value_dim * self.hidden

    @property
    def small(self) -> int:
        return self.query_rank + self.kv_rank

    @property
    def cached_elements(self) -> int:
        return self.kv_rank + self.rope_dim

    @property
    def decode_flops_per_pair(self) -> int:
        return 2 * self.heads * (2 * self.kv_rank + self.rope_dim)

    @property
    def prefill_flops_per_pair(self) -> int:
        return 2 * self.heads * (self.nope_dim + self.rope_dim + self.value_dim)

    @property
    def partial_elements(self) -> int:
        return self.heads * self.kv_rank

    @property
    def weights(self) -> int:
        return self.replicated + self.query + self.value_up + self.output + self.small


Attention = GroupedAttention | LatentAttention
