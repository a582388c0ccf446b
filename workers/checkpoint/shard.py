"""Which part of every weight one rank of a parallel layout holds.

Exists as the only place that knows how weights are cut, so that a rank reads from disk what it
computes with and nothing else. Attention is cut by TPA, experts by EP and TPF (`ParallelLayout`);
Mamba heads, shared experts, dense MLPs and the vocabulary of the head are cut N-fold. What every
rank needs whole (norms, router, latent projections, embeddings, the MTP block's input projection,
biases that are added after a reduction) is replicated.

The numbering of ranks makes the N-fold parts of the heads that a rank combines after the
all-to-all of a KVP group its own heads' columns of the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.checkpoint.region import Region, Spans, joined, shifted
from workers.model.config import ModelConfig
from workers.parallel.layout import ParallelLayout


@dataclass(frozen=True, slots=True)
class RankShard:
    """One rank of a layout; the default is the only rank of one, which holds everything.

    Raises:
        ValueError: the layout has no such rank.
    """

    rank: int = 0
    layout: ParallelLayout = field(default_factory=ParallelLayout)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.layout.size:
            raise ValueError(f"rank {self.rank}: the layout has ranks 0 to {self.layout.size - 1}")

    def region(self, name: str, shape: tuple[int, ...], config: ModelConfig) -> Region:
        """What the rank holds of a canonical weight.

        Args:
            name: canonical name, see `schema`.
            shape: of the whole weight.
            config: the model.

        Raises:
            ValueError: the layout does not divide the heads, experts or columns of the model.
        """
        region = Region.whole(shape)
        for dimension, spans in self._cuts(_within_layer(name), config).items():
            region = region.replace(dimension, spans)
        return region

    def _cuts(self, name: str, config: ModelConfig) -> dict[int, Spans]:
        """Dimension -> spans, for the dimensions that are cut; `name` within its layer."""
        cut = self._all_ranks
        match name:
            case "lm_head.weight":
                return {0: self._words(config)}
            case "mixer.q_proj.weight" | "mixer.q_proj.bias":
                return {0: self._query_rows(config)}
            case "mixer.k_proj.weight" | "mixer.k_proj.bias":
                return {0: self._key_value_rows(config)}
            case "mixer.v_proj.weight" | "mixer.v_proj.bias":
                return {0: self._key_value_rows(config)}
            case "mixer.o_proj.weight":
                heads = cut(config.num_attention_heads, "num_attention_heads")
                return {1: shifted(heads, 0, config.head_dim)}
            case "mixer.experts.up_proj":
                return {0: self._experts(config), 1: self._expert_columns(config)}
            case "mixer.experts.down_proj":
                return {0: self._experts(config), 2: self._expert_columns(config)}
            case "mixer.shared_experts.up_proj.weight" | "mixer.shared_experts.up_proj.bias":
                return {0: self._shared_columns(config)}
            case "mixer.shared_experts.down_proj.weight":
                return {1: self._shared_columns(config)}
            case "mixer.up_proj.weight" | "mixer.up_proj.bias":
                return {0: cut(config.intermediate_size, "intermediate_size")}
            case "mixer.down_proj.weight":
                return {1: cut(config.intermediate_size, "intermediate_size")}
            case _:
                return self._mamba_cuts(name, config)

    def _mamba_cuts(self, name: str, config: ModelConfig) -> dict[int, Spans]:
        match name:
            case "mixer.A_log" | "mixer.D" | "mixer.dt_bias":
                return {0: self._mamba_heads(config)}
            case "mixer.norm.weight":
                return {0: self._mamba_columns(config)}
            case "mixer.out_proj.weight":
                return {1: self._mamba_columns(config)}
            case "mixer.conv1d.weight" | "mixer.conv1d.bias":
                return {0: joined(self._conv_channels(config))}
            case "mixer.in_proj.weight" | "mixer.in_proj.bias":
                # Rows: gate, x, B, C, dt.
                inner = config.mamba_inner
                return {
                    0: joined(
                        self._mamba_columns(config),
                        shifted(self._conv_channels(config), inner),
                        shifted(self._mamba_heads(config), inner + config.conv_dim),
                    )
                }
            case _:
                return {}

    def _words(self, config: ModelConfig) -> Spans:
        """Equal parts of the vocabulary, but for the last ranks when it does not divide."""
        each = -(-config.vocab_size // self.layout.size)
        begin = min(self.rank * each, config.vocab_size)
        return ((begin, min(begin + each, config.vocab_size)),)

    def _all_ranks(self, size: int, what: str) -> Spans:
        return _part(size, self.layout.size, self.rank, what, "kvp x tpa")

    def _query_rows(self, config: ModelConfig) -> Spans:
        """The query heads of a TPA rank; all ranks of its KVP group hold the same."""
        heads, tpa_rank = config.num_attention_heads, self.layout.tpa_rank(self.rank)
        mine = _part(heads, self.layout.tpa, tpa_rank, "num_attention_heads", "tpa")
        return shifted(mine, 0, config.head_dim)

    def _key_value_rows(self, config: ModelConfig) -> Spans:
        """The KV heads of a TPA rank; with more ranks than heads, a head on several ranks."""
        heads, tpa = config.num_key_value_heads, self.layout.tpa
        tpa_rank = self.layout.tpa_rank(self.rank)
        if tpa <= heads:
            mine = _part(heads, tpa, tpa_rank, "num_key_value_heads", "tpa")
        else:
            sharing = _divided(tpa, heads, "tpa", "num_key_value_heads")
            mine = ((tpa_rank // sharing, tpa_rank // sharing + 1),)
        return shifted(mine, 0, config.head_dim)

    def _experts(self, config: ModelConfig) -> Spans:
        ep_rank = self.layout.ep_rank(self.rank)
        return _part(config.n_routed_experts, self.layout.ep, ep_rank, "experts", "ep")

    def _expert_columns(self, config: ModelConfig) -> Spans:
        size = config.moe_intermediate_size
        tpf_rank = self.layout.tpf_rank(self.rank)
        return _part(size, self.layout.tpf, tpf_rank, "moe_intermediate_size", "tpf")

    def _shared_columns(self, config: ModelConfig) -> Spans:
        size = config.moe_shared_expert_intermediate_size
        return self._all_ranks(size, "moe_shared_expert_intermediate_size")

    def _mamba_heads(self, config: ModelConfig) -> Spans:
        return self._all_ranks(config.mamba_num_heads, "mamba_num_heads")

    def _mamba_columns(self, config: ModelConfig) -> Spans:
        return shifted(self._mamba_heads(config), 0, config.mamba_head_dim)

    def _conv_channels(self, config: ModelConfig) -> Spans:
        """Channels of the convolution: x of its heads, B and C of the groups that they use.

        With more ranks than groups, a group is on several ranks.
        """
        groups, state, inner = config.mamba_groups, config.ssm_state_size, config.mamba_inner
        if self.layout.size <= groups:
            mine = self._all_ranks(groups, "n_groups")
        else:
            sharing = _divided(self.layout.size, groups, "kvp x tpa", "n_groups")
            mine = ((self.rank // sharing, self.rank // sharing + 1),)
        return (
            *self._mamba_columns(config),
            *shifted(mine, inner, state),
            *shifted(mine, inner + groups * state, state),
        )


def _within_layer(name: str) -> str:
    """`mtp.layers.1.mixer.o_proj.weight` -> `mixer.o_proj.weight`; other names as they are."""
    _, layer, inner = name.partition("layers.")
    return inner.partition(".")[2] if layer else name


def _divided(size: int, parts: int, what: str, by: str) -> int:
    if size % parts:
        raise ValueError(f"{what} {size} is not divisible by {by} {parts}: choose another layout")
    return size // parts


def _part(size: int, parts: int, index: int, what: str, by: str) -> Spans:
    """Part `index` of `parts` equal ones."""
    each = _divided(size, parts, what, by)
    return ((index * each, (index + 1) * each),)
