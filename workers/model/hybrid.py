"""The whole model: prefill and decode over state that someone else owns.

Exists as the one object an engine holds. It knows the order of the layers and nothing of
requests, memory or sampling; it computes where its weights are (CPU or CUDA) in their dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from workers.model import attention, mamba, mlp, moe, mtp
from workers.model.assembly import assemble
from workers.model.checkpoint import Checkpoint
from workers.model.config import ModelConfig
from workers.model.norm import rms_norm
from workers.model.paging import DecodePages, PrefillPages
from workers.model.state_tensors import StateTensors
from workers.model.weights import (
    AttentionWeights,
    MambaWeights,
    MlpWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
)


@dataclass(frozen=True, slots=True)
class HybridModel:
    """A Nemotron-H model: its shape and its weights."""

    config: ModelConfig
    weights: ModelWeights

    @torch.no_grad()
    def prefill(
        self,
        token_ids: Tensor,
        state: StateTensors,
        *,
        slot: int,
        block_table: Tensor,
        context_tokens: int,
    ) -> Tensor:
        """Read t tokens of one prompt, continuing after `context_tokens` earlier ones.

        Args:
            token_ids: int64 [t], t >= 1.
            state: read and updated in place: the request's blocks and its slot.
            slot: where its conv and SSM state are. With context_tokens 0 what the slot holds is
                ignored and the prompt starts from zero state.
            block_table: int64 [n]; entry i is the block of tokens [i * block_size, ...).
            context_tokens: tokens of this prompt that are already in the state.

        Returns:
            Hidden states [t, d] after the final norm.
        """
        pages = PrefillPages.of(block_table, state.kv.shape[4], context_tokens, len(token_ids))
        x = self.weights.embeddings[token_ids]
        attention_layer = mamba_layer = 0
        for layer in self.weights.layers:
            normed = rms_norm(x, layer.norm, self.config.layer_norm_epsilon)
            match layer.mixer:
                case AttentionWeights() as mixer:
                    mixed = attention.prefill(
                        normed, state.kv, attention_layer, pages, mixer, self.config
                    )
                    attention_layer += 1
                case MambaWeights() as mixer:
                    history, ssm = state.conv[slot, mamba_layer], state.ssm[slot, mamba_layer]
                    start = (history, ssm)
                    if context_tokens == 0:
                        start = (torch.zeros_like(history), torch.zeros_like(ssm))
                    out, new_history, new_ssm = mamba.mix_sequence(
                        normed[None], start[0][None], start[1][None], mixer, self.config
                    )
                    mixed = out[0]
                    history.copy_(new_history[0])
                    ssm.copy_(new_ssm[0])
                    mamba_layer += 1
                case MoeWeights() as mixer:
                    mixed = moe.mix(normed, mixer, self.config)
                case MlpWeights() as mixer:
                    mixed = mlp.mix(normed, mixer)
            x = x + mixed
        return rms_norm(x, self.weights.final_norm, self.config.layer_norm_epsilon)

    @torch.no_grad()
    def decode(
        self,
        token_ids: Tensor,
        state: StateTensors,
        *,
        slots: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
    ) -> Tensor:
        """Read one new token for each of b requests.

        Args:
            token_ids: int64 [b].
            state: read and updated in place.
            slots: int64 [b], all different.
            block_tables: int64 [b, max_blocks], padded with -1; each has room for the new token.
            context_lens: int64 [b], tokens already in the state, the new one not counted.

        Returns:
            Hidden states [b, d] after the final norm.
        """
        pages = DecodePages.of(block_tables, state.kv.shape[4], context_lens)
        x = self.weights.embeddings[token_ids]
        attention_layer = mamba_layer = 0
        for layer in self.weights.layers:
            normed = rms_norm(x, layer.norm, self.config.layer_norm_epsilon)
            match layer.mixer:
                case AttentionWeights() as mixer:
                    mixed = attention.decode(
                        normed, state.kv, attention_layer, pages, mixer, self.config
                    )
                    attention_layer += 1
                case MambaWeights() as mixer:
                    mixed, new_history, new_ssm = mamba.mix_step(
                        normed,
                        state.conv[slots, mamba_layer],
                        state.ssm[slots, mamba_layer],
                        mixer,
                        self.config,
                    )
                    state.conv[slots, mamba_layer] = new_history
                    state.ssm[slots, mamba_layer] = new_ssm
                    mamba_layer += 1
                case MoeWeights() as mixer:
                    mixed = moe.mix(normed, mixer, self.config)
                case MlpWeights() as mixer:
                    mixed = mlp.mix(normed, mixer)
            x = x + mixed
        return rms_norm(x, self.weights.final_norm, self.config.layer_norm_epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [..., d] -> float32 [..., vocab]."""
        return functional.linear(hidden, self.weights.lm_head).float()

    @torch.no_grad()
    def draft_prefill(
        self,
        next_token_ids: Tensor,
        hidden: Tensor,
        draft_kv: Tensor,
        *,
        block_table: Tensor,
        context_tokens: int,
    ) -> Tensor:
        """One recursion of the MTP block over t positions of one request.

        Args:
            next_token_ids: int64 [t], the token after each position.
            hidden: [t, d], hidden states of those positions (of `prefill`, `decode`, or of the
                previous recursion).
            draft_kv: as `StateTensors.kv`, with the block's attention layers in dimension 1;
                written in place.
            block_table: int64 [n], the request's blocks in draft_kv.
            context_tokens: positions already in draft_kv.

        Returns:
            Hidden states [t, d]; `logits` of them score the token after the next one.

        Raises:
            ValueError: the model has no MTP block.
        """
        pages = PrefillPages.of(block_table, draft_kv.shape[4], context_tokens, len(hidden))
        embedding = self.weights.embeddings[next_token_ids]
        return mtp.prefill(embedding, hidden, draft_kv, pages, self._mtp(), self.config)

    @torch.no_grad()
    def draft_decode(
        self,
        next_token_ids: Tensor,
        hidden: Tensor,
        draft_kv: Tensor,
        *,
        block_tables: Tensor,
        context_lens: Tensor,
    ) -> Tensor:
        """One recursion of the MTP block for one position of each of b requests.

        Args as in `draft_prefill` and `decode`: next_token_ids int64 [b], hidden [b, d],
        block_tables int64 [b, max_blocks], context_lens int64 [b].
        """
        pages = DecodePages.of(block_tables, draft_kv.shape[4], context_lens)
        embedding = self.weights.embeddings[next_token_ids]
        return mtp.decode(embedding, hidden, draft_kv, pages, self._mtp(), self.config)

    def _mtp(self) -> MtpWeights:
        if self.weights.mtp is None:
            raise ValueError("this checkpoint has no MTP block: set draft_tokens to 0")
        return self.weights.mtp


# transformers keeps this one in float32 whatever the model dtype.
_ROUTER_BIAS = "e_score_correction_bias"


def load_model(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> HybridModel:
    """Load a checkpoint folder.

    Args:
        path: folder with config.json and safetensors, in either naming scheme.
        dtype: torch.float32 or torch.bfloat16; None takes the one config.json names.
        device: where the weights go.

    Raises:
        CheckpointError: the folder, its config.json or one of its tensors cannot be used.
    """
    folder = Path(path)
    config = ModelConfig.from_file(folder)
    checkpoint = Checkpoint(folder, config)
    wanted = dtype or config.dtype
    tensors = {}
    for name in checkpoint.names():
        kept = torch.float32 if name.endswith(_ROUTER_BIAS) else wanted
        tensors[name] = checkpoint.read(name).to(device=device, dtype=kept)
    return HybridModel(config, assemble(config, tensors))
