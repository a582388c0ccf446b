"""How N ranks share one model, and which of them holds which token.

Exists as the one definition that weights, state, hand-off and spec agree on. The layout is Helix's
(arXiv 2507.07120, section 2): the N ranks are KVP x TPA in attention and the same N are TPF x EP in
the mixture of experts. Plain tensor parallelism over n ranks is tpa = tpf = n.

Ranks are numbered with TPA and EP outermost: rank = tpa_rank * kvp + kvp_rank = ep_rank * tpf +
tpf_rank.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Sizes of the parallel groups; the default is a single rank.

    Attributes:
        kvp: ranks that share the tokens of a request's KV.
        tpa: ranks that share the KV heads.
        tpf: ranks that share the columns of one expert.
        ep: ranks that share the experts.
        interleave: consecutive tokens that go to one KVP rank before the next one's turn.

    Raises:
        ValueError: a size below 1, or attention and experts over different numbers of ranks.
    """

    kvp: int = 1
    tpa: int = 1
    tpf: int = 1
    ep: int = 1
    interleave: int = 16

    def __post_init__(self) -> None:
        for name in ("kvp", "tpa", "tpf", "ep", "interleave"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.kvp * self.tpa != self.tpf * self.ep:
            raise ValueError(
                f"kvp {self.kvp} x tpa {self.tpa} ranks in attention, but tpf {self.tpf} x ep "
                f"{self.ep} in the experts: the same ranks do both, make the products equal"
            )

    @classmethod
    def tensor_parallel(cls, ranks: int) -> ParallelLayout:
        """Plain tensor parallelism, as prefill workers use it."""
        return cls(tpa=ranks, tpf=ranks)

    @property
    def size(self) -> int:
        """N, the number of ranks."""
        return self.kvp * self.tpa

    def kvp_rank(self, rank: int) -> int:
        """Which share of the tokens a rank holds."""
        return rank % self.kvp

    def tpa_rank(self, rank: int) -> int:
        """Which share of the KV heads a rank holds."""
        return rank // self.kvp

    def tpf_rank(self, rank: int) -> int:
        """Which share of the columns of its experts a rank holds."""
        return rank % self.tpf

    def ep_rank(self, rank: int) -> int:
        """Which share of the experts a rank holds."""
        return rank // self.tpf

    def local_tokens(self, kvp_rank: int, tokens: int) -> int:
        """How many of a request's first `tokens` tokens a KVP rank holds.

        floor(L / (D I)) I + clamp(L mod (D I) - r I, 0, I), with D = kvp and I = interleave
        (round-robin KV append of Helix, section 2.3; the form is that of vLLM's RFC 50391).
        """
        turn = self.kvp * self.interleave
        rest = tokens % turn - kvp_rank * self.interleave
        return tokens // turn * self.interleave + min(max(rest, 0), self.interleave)

    def owner(self, token: int) -> int:
        """The KVP rank that holds token number `token`."""
        return token // self.interleave % self.kvp

    def local_index(self, token: int) -> int:
        """The place of a token among those that its owner holds."""
        return token // (self.kvp * self.interleave) * self.interleave + token % self.interleave
