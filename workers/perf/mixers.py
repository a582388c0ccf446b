"""Layers other than attention: experts, dense MLPs, and recurrences with a constant state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Experts:
    """Mixture-of-experts layers, in the full or in a latent dimension.

    LatentMoE (arXiv 2601.18089, section 3): routed experts read and write `latent` elements, the
    router and the shared experts stay in the full dimension. `gated` experts have three matrices
    (SwiGLU), others two (relu2). `shared_hidden` 0 means no shared expert.
    """

    layers: int
    hidden: int
    count: int
    top_k: int
    expert_hidden: int
    gated: bool
    latent: int | None = None
    shared_hidden: int = 0
    router_extras: int = 0
    expert_bias: bool = False
    shared_gate: bool = False

    @property
    def width(self) -> int:
        """Elements that a routed expert reads and writes for a token."""
        return self.hidden if self.latent is None else self.latent

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def expert_weights(self) -> int:
        """Parameters of one routed expert."""
        biases = (self.matrices - 1) * self.expert_hidden + self.width if self.expert_bias else 0
        return self.matrices * self.width * self.expert_hidden + biases

    @property
    def router(self) -> int:
        return self.hidden * self.count + self.router_extras

    @property
    def latent_projections(self) -> int:
        """Parameters of the projections into and out of the latent dimension."""
        return 0 if self.latent is None else 2 * self.hidden * self.latent

    @property
    def shared(self) -> int:
        gate = self.hidden if self.shared_gate else 0
        return self.matrices * self.hidden * self.shared_hidden + gate

    @property
    def weights(self) -> int:
        """Parameters of one layer, without its input norm."""
        return self.unrouted + self.count * self.expert_weights

    @property
    def active(self) -> int:
        """Parameters of one layer that a token meets."""
        return self.unrouted + self.top_k * self.expert_weights

    @property
    def unrouted(self) -> int:
        """Parameters of one layer that every token meets."""
        return self.router + self.latent_projections + self.shared


@dataclass(frozen=True, slots=True)
class Mlp:
    """Dense feed-forward layers."""

    layers: int
    hidden: int
    intermediate: int
    gated: bool

    @property
    def weights(self) -> int:
        """Parameters of one layer, without its input norm."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Layers whose memory of the past has one size: Mamba-2 (arXiv 2405.21060), gated delta nets.

    `inner` = value heads x head dim; `state` elements of each inner channel; `groups` of keys and
    queries (B and C of Mamba-2). `chunk` is the block length of the parallel scan in prefill.
    """

    layers: int
    hidden: int
    heads: int
    head_dim: int
    groups: int
    state: int
    conv_kernel: int
    input_weights: int
    small: int
    chunk: int = 128

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        return self.inner + 2 * self.groups * self.state

    @property
    def output_weights(self) -> int:
        return self.inner * self.hidden

    @property
    def shared_input_weights(self) -> int:
        """The part of the input projection that makes B and C, one for each group."""
        return 2 * self.groups * self.state * self.hidden

    @property
    def state_elements(self) -> int:
        """Elements of recurrent state that one sequence keeps in one layer."""
        return self.inner * self.state

    @property
    def conv_elements(self) -> int:
        """Elements of convolution state that one sequence keeps in one layer."""
        return self.conv_channels * (self.conv_kernel - 1)

    @property
    def decode_flops(self) -> int:
        """Operations on the state for one token: h = a h + (dt x) B and y = C h, 5 an element."""
        return 5 * self.state_elements

    @property
    def prefill_flops(self) -> int:
        """Operations on one token in a scan by chunks (arXiv 2405.21060, section 6).

        C B^T and its product with x inside the chunk; what goes into the state and comes out.
        """
        inside = 2 * self.chunk * (self.groups * self.state + self.inner)
        return inside + 4 * self.state_elements

    @property
    def weights(self) -> int:
        """Parameters of one layer, without its input norm."""
        return self.input_weights + self.output_weights + self.small


def mamba2(
    *,
    layers: int,
    hidden: int,
    heads: int,
    head_dim: int,
    groups: int,
    state: int,
    conv_kernel: int,
    chunk: int = 128,
    conv_bias: bool = True,
) -> Recurrence:
    """Mamba-2 layers: in_proj makes z, x, B, C and dt at once (Nemotron-H, arXiv 2504.03624)."""
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    conv = channels * (conv_kernel + (1 if conv_bias else 0))
    return Recurrence(
        layers=layers,
        hidden=hidden,
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        state=state,
        conv_kernel=conv_kernel,
        input_weights=hidden * (inner + channels + heads),
        small=conv + 3 * heads + inner,
        chunk=chunk,
    )


def gated_delta_net(
    *,
    layers: int,
    hidden: int,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_kernel: int,
) -> Recurrence:
    """Gated delta net layers (arXiv 2412.06464), with the projections of transformers' Qwen3.5."""
    inner = value_heads * value_dim
    channels = inner + 2 * key_heads * key_dim
    return Recurrence(
        layers=layers,
        hidden=hidden,
        heads=value_heads,
        head_dim=value_dim,
        groups=key_heads,
        state=key_dim,
        conv_kernel=conv_kernel,
        input_weights=hidden * (channels + inner + 2 * value_heads),
        small=channels * conv_kernel + 2 * value_heads + value_dim,
        chunk=64,
    )
