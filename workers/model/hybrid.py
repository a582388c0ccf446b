"""The whole model: prefill, windows of new tokens, and drafts, over state that others own.

Exists as the one object an engine holds. It knows the order of the layers and nothing of
requests, memory or sampling; it computes where its weights are (CPU or CUDA) in their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.kernels.cpu.pages import PlannedPages
from workers.model import attention, mamba, mlp, moe, mtp, windows
from workers.model.config import ModelConfig
from workers.model.fused import FusedModel
from workers.model.kvp_paging import KvpPages
from workers.model.norm import add_norm, rms_norm
from workers.model.paging import PrefillPages, WindowPages
from workers.model.ranks import Ranks
from workers.model.state_tensors import StateTensors
from workers.model.weights import (
    AttentionWeights,
    LayerWeights,
    MambaWeights,
    MlpWeights,
    ModelWeights,
    MoeWeights,
    MtpWeights,
)
from workers.model.word_ranks import best_word, gather_scores


@dataclass(frozen=True, slots=True)
class HybridModel:
    """A Nemotron-H model, or one rank's part of it: its shape and its weights.

    With `ranks` the config is that of the rank (`rank_config`), all ranks make the same calls in
    the same order, and hidden states are the same on all of them.
    """

    config: ModelConfig
    weights: ModelWeights
    ranks: Ranks | None = None
    fused: FusedModel | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Describe a model that is whole for compiled steps, if they know all of it."""
        fused = FusedModel.of(self.config, self.weights) if self.ranks is None else None
        object.__setattr__(self, "fused", fused)

    @torch.no_grad()
    def prefill(
        self,
        token_ids: Tensor,
        state: StateTensors,
        *,
        slot: int,
        block_table: Tensor,
        context_tokens: int,
        bounded_tokens: int | None = None,
    ) -> Tensor:
        """Read t tokens of one request, continuing after `context_tokens` earlier ones.

        Afterwards nothing is pending in the slot: what its window buffers hold is void.

        Args:
            token_ids: int64 [t], t >= 1.
            state: read and updated in place: the request's blocks and its slot.
            slot: where its conv and SSM state are. With context_tokens 0 what the slot holds is
                ignored and the request starts from zero state.
            block_table: int64 [n]; entry i is the block of tokens [i * block_size, ...).
            context_tokens: tokens of this request that are already in the state.
            bounded_tokens: the first so many tokens of the request are its prompt; None when all
                are. dt is bounded by time_step_min in prompts only, so that tokens which were
                generated once are read again as they were then.

        Returns:
            Hidden states [t, d] after the final norm.
        """
        pages = self._prefill_pages(state, block_table, context_tokens, len(token_ids))
        pages.open(state.kv, state.draft_kv)
        bounded = None
        if bounded_tokens is not None:
            bounded = min(max(bounded_tokens - context_tokens, 0), len(token_ids))
        x = self.weights.embeddings[token_ids]
        normed = self._first_norm(x)
        attention_layer = mamba_layer = 0
        for layer, next_norm in self._layers_and_next_norms():
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
                        normed[None], start[0][None], start[1][None], mixer, self.config, bounded
                    )
                    mixed = out[0]
                    history.copy_(new_history[0])
                    ssm.copy_(new_ssm[0])
                    mamba_layer += 1
                case MoeWeights() as mixer:
                    mixed = moe.mix(normed, mixer, self.config)
                case MlpWeights() as mixer:
                    mixed = mlp.mix(normed, mixer)
            normed = add_norm(x, mixed, next_norm, self.config.layer_norm_epsilon)
        return normed

    @torch.no_grad()
    def verify(
        self,
        token_ids: Tensor,
        state: StateTensors,
        *,
        slots: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        pending: Tensor,
    ) -> Tensor:
        """Read a window of w tokens for each of b requests: a committed one, then drafts.

        The first token of a window is committed by being there. Of the drafts, those that turn
        out right are made part of the state by the next call, which is told how many in
        `pending`; the others are forgotten. A request with fewer drafts than w - 1 may have any
        tokens in their place, and ignores what comes of them. With w = 1 this is plain decoding.

        Args:
            token_ids: int64 [b, w].
            state: read and updated in place.
            slots: int64 [b], all different; quickest in ascending order.
            block_tables: int64 [b, max_blocks], padded with -1. Keys and values of all w tokens
                are stored as far as the blocks reach, rejected ones to be overwritten; only what
                will be accepted needs a place.
            context_lens: int64 [b], committed tokens in the state, accepted drafts of the last
                window included, this window not.
            pending: int64 [b], how many tokens of the slot's last window were accepted, its first
                one included; 0 after `prefill` or `commit`. (0 and 1 are the same: the first one
                is folded when it is read.)

        Returns:
            Hidden states [b, w, d] after the final norm.
        """
        x = self.weights.embeddings[token_ids]
        if self.fused is not None and self.fused.suits_windows(x, state):
            return self.fused.verify(x, state, slots, block_tables, context_lens, pending)
        width = token_ids.shape[1]
        pages = self._window_pages(state, block_tables, context_lens, width)
        pages.open(state.kv, state.draft_kv)
        line = windows.begin(state, slots, pending, width, self.ranks)
        normed = self._first_norm(x)
        attention_layer = mamba_layer = 0
        for layer, next_norm in self._layers_and_next_norms():
            match layer.mixer:
                case AttentionWeights() as mixer:
                    mixed = attention.window(
                        normed, state.kv, attention_layer, pages, mixer, self.config
                    )
                    attention_layer += 1
                case MambaWeights() as mixer:
                    mixed = windows.mix(normed, state.ssm, line, mamba_layer, mixer, self.config)
                    mamba_layer += 1
                case MoeWeights() as mixer:
                    mixed = moe.mix(normed, mixer, self.config)
                case MlpWeights() as mixer:
                    mixed = mlp.mix(normed, mixer)
            normed = add_norm(x, mixed, next_norm, self.config.layer_norm_epsilon)
        line.save(state)
        return normed

    @torch.no_grad()
    def commit(self, state: StateTensors, *, slots: Tensor, pending: Tensor) -> None:
        """Fold the accepted drafts of the last windows into conv and SSM state, and nothing else.

        For state that leaves its slot (a hand-off, a checkpoint). Afterwards nothing is pending.

        Args:
            state: updated in place.
            slots: int64 [b], all different.
            pending: int64 [b], as in `verify`.
        """
        layers = [
            layer.mixer for layer in self.weights.layers if isinstance(layer.mixer, MambaWeights)
        ]
        windows.commit(state, slots, pending, layers, self.config)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [..., d] -> float32 [..., vocab].

        Of several ranks only rank 0 has them; what the others return means nothing.
        """
        scores = self.weights.score.scores(hidden)
        if self.ranks is None:
            return scores
        return gather_scores(scores, self.config.vocab_size, self.ranks)

    def most_likely(self, hidden: Tensor) -> Tensor:
        """The token that scores highest: hidden [..., d] -> int64 [...], on every rank."""
        scores = self.weights.score.scores(hidden)
        if self.ranks is None:
            return scores.argmax(dim=-1)
        return best_word(scores, self.config.vocab_size, self.ranks)

    @torch.no_grad()
    def draft_prefill(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        state: StateTensors,
        *,
        block_table: Tensor,
        context_tokens: int,
        draft_hidden: Tensor | None,
    ) -> Tensor:
        """Build the draft KV of a chunk that `prefill` has just read.

        Position p of a request takes token p + 1 and the hidden state of token p. So a chunk of
        tokens [a, b) gives positions a - 1 to b - 2, with the hidden state of token a - 1 carried
        over from the chunk before; position b - 1 is drafted from when token b is known.

        Args:
            token_ids: int64 [t], the tokens of the chunk, as given to `prefill`.
            hidden: [t, d], what `prefill` returned.
            state: its draft_kv is written.
            block_table: int64 [n], as in `prefill`.
            context_tokens: a, tokens of the request before the chunk.
            draft_hidden: [d], what this returned for the chunk before; None for the first.

        Returns:
            The hidden state [d] of the chunk's last token. It is the draft hidden of the request:
            carried to the next chunk, handed off with the state, and the first `hidden` of
            `draft`, at position b - 1, when the next token is known.

        Raises:
            ValueError: the model has no MTP block, or draft_hidden is missing or too much.
        """
        block = self._mtp()
        if (draft_hidden is None) != (context_tokens == 0):
            raise ValueError("draft_hidden goes with every chunk of a request but the first")
        before = hidden[:-1]
        if draft_hidden is None:
            token_ids = token_ids[1:]
        else:
            before = torch.cat([draft_hidden[None], before])
        if len(token_ids):
            first = max(context_tokens - 1, 0)
            pages = self._prefill_pages(state, block_table, first, len(token_ids))
            pages.open(state.draft_kv)
            embedding = self.weights.embeddings[token_ids]
            mtp.prefill(embedding, before, state.draft_kv, pages, block, self.config)
        return hidden[-1]

    @torch.no_grad()
    def draft(
        self,
        next_token_ids: Tensor,
        hidden: Tensor,
        state: StateTensors,
        *,
        block_tables: Tensor,
        context_lens: Tensor,
        counts: Tensor,
    ) -> Tensor:
        """One recursion of the MTP block over w positions of each of b requests.

        After `verify`, w is its window: true hidden states at positions whose next tokens are now
        known. The recursion goes on with w = 1, its own output and the token drafted from that;
        what it stores is overwritten by true positions later.

        Args:
            next_token_ids: int64 [b, w], the token after each position.
            hidden: [b, w, d], hidden states of the positions (of `prefill`, `verify`, or of the
                previous recursion).
            state: its draft_kv is written, as far as the blocks reach.
            block_tables: int64 [b, max_blocks], padded with -1.
            context_lens: int64 [b], the first of the positions.
            counts: int64 [b], valid positions of each request, 1 to w; the tokens and hidden
                states after them may be any.

        Returns:
            Hidden states [b, d] of the last valid positions; `logits` of one at position p score
            token p + 2.

        Raises:
            ValueError: the model has no MTP block.
        """
        block = self._mtp()
        width = next_token_ids.shape[1]
        seen = self._window_pages(state, block_tables, context_lens, width, counts)
        every = seen
        if self.config.mtp_attention_layers > 1:
            every = self._window_pages(state, block_tables, context_lens, width)
        seen.open(state.draft_kv)
        embedding = self.weights.embeddings[next_token_ids]
        pages = (every, seen)
        return mtp.window(embedding, hidden, counts - 1, state.draft_kv, pages, block, self.config)

    @torch.no_grad()
    def drafts(
        self,
        next_token_ids: Tensor,
        hidden: Tensor,
        state: StateTensors,
        *,
        block_tables: Tensor,
        context_lens: Tensor,
        counts: Tensor,
        count: int,
    ) -> Tensor:
        """`count` greedy drafts of each request, int64 [b, count]: `draft` that many times.

        The first recursion is that of the arguments, which are as in `draft`; the others are fed
        with its output and the token that scores highest.
        """
        self._mtp()
        if self.fused is not None and self.fused.suits_drafts(hidden, state):
            embedding = self.weights.embeddings[next_token_ids]
            places = block_tables, context_lens, counts
            return self.fused.drafts(embedding, hidden, state, *places, count)
        made: list[Tensor] = []
        for _ in range(count):
            last = self.draft(
                next_token_ids,
                hidden,
                state,
                block_tables=block_tables,
                context_lens=context_lens,
                counts=counts,
            )
            made.append(self.most_likely(last))
            context_lens, counts = context_lens + counts, torch.ones_like(counts)
            next_token_ids, hidden = made[-1][:, None], last[:, None]
        return torch.stack(made, dim=1)

    def _first_norm(self, x: Tensor) -> Tensor:
        first = self.weights.layers[0].norm if self.weights.layers else self.weights.final_norm
        return rms_norm(x, first, self.config.layer_norm_epsilon)

    def _layers_and_next_norms(self) -> Iterator[tuple[LayerWeights, Tensor]]:
        """Each layer, and the norm of what comes after it: one call adds and normalises."""
        layers = self.weights.layers
        norms = [*(layer.norm for layer in layers[1:]), self.weights.final_norm]
        return zip(layers, norms, strict=False)

    def _window_pages(
        self,
        state: StateTensors,
        block_tables: Tensor,
        context_lens: Tensor,
        width: int,
        counts: Tensor | None = None,
    ) -> WindowPages | PlannedPages | KvpPages:
        config = self.config
        if self.ranks is not None and self.ranks.layout.kvp > 1:
            size, dtype = state.block_size, state.kv.dtype
            return KvpPages.of(block_tables, size, context_lens, width, self.ranks, dtype, counts)
        return WindowPages.of(
            block_tables,
            state.block_size,
            context_lens,
            width,
            share=config.num_attention_heads // max(config.num_key_value_heads, 1),
            dtype=state.kv.dtype,
            counts=counts,
        )

    def _prefill_pages(
        self, state: StateTensors, block_table: Tensor, context_tokens: int, tokens: int
    ) -> PrefillPages | KvpPages:
        if self.ranks is None or self.ranks.layout.kvp == 1:
            return PrefillPages.of(block_table, state.block_size, context_tokens, tokens)
        lens = torch.tensor([context_tokens], device=block_table.device)
        table, size, dtype = block_table[None], state.block_size, state.kv.dtype
        return KvpPages.of(table, size, lens, tokens, self.ranks, dtype)

    def _mtp(self) -> MtpWeights:
        if self.weights.mtp is None:
            raise ValueError("this checkpoint has no MTP block: set draft_tokens to 0")
        return self.weights.mtp
