"""Steps of a model as single calls of compiled code, for the models and sizes that it knows.

Exists beside the model's own modules, which stay the definition of what is computed: what is not
known (ranks, grouped routing, products that oneDNN has, many rows, an MTP block that does not
attend exactly once) runs kernel by kernel, with the same results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from workers.kernels.cpu import calls, step
from workers.kernels.cpu.mamba import MOST_TOKENS
from workers.model.config import ModelConfig
from workers.model.described import Describer, UnknownPart
from workers.model.state_tensors import StateTensors
from workers.model.weights import ModelWeights


@dataclass(slots=True)
class _Described:
    """Layers, and up to how many tokens they are run at once."""

    model: step.Model
    most_rows: int


@dataclass(slots=True)
class FusedModel:
    """A model whose windows, and perhaps drafts, are single calls. One thread at a time.

    Descriptions point into `weights`, and into the state of the last call.
    """

    weights: ModelWeights
    _backbone: _Described
    _block: tuple[_Described, step.Drafting] | None
    _state: tuple[StateTensors, step.DescribedState] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, config: ModelConfig, weights: ModelWeights) -> FusedModel | None:
        """The model, all of it on this rank; None when its layers have a part that is not known."""
        if not calls.enabled(weights.embeddings):
            return None
        try:
            describer = Describer(config)
            model = describer.model(weights.layers, weights.final_norm)
        except UnknownPart:
            return None
        backbone = _Described(model, describer.most_rows)
        return cls(weights, backbone, _block(config, weights))

    def suits_windows(self, x: Tensor, state: StateTensors) -> bool:
        """Whether `verify` computes windows x [b, w, d] of this state as the model would."""
        rows, width, _ = x.shape
        room = state.window_inputs.shape[2] + width <= MOST_TOKENS
        return room and self._suits(x, state.kv, self._backbone, rows * width)

    def verify(
        self,
        x: Tensor,
        state: StateTensors,
        slots: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        pending: Tensor,
    ) -> Tensor:
        """As `HybridModel.verify`, from embeddings x [b, w, d], which are overwritten."""
        described = self._describe(state)
        model = self._backbone.model
        return step.verify(model, x, described, slots, block_tables, context_lens, pending)

    def suits_drafts(self, hidden: Tensor, state: StateTensors) -> bool:
        """Whether `drafts` computes drafts from hidden [b, w, d] as the model would."""
        if self._block is None:
            return False
        rows = hidden.shape[0] * hidden.shape[1]
        return self._suits(hidden, state.draft_kv, self._block[0], rows)

    def drafts(
        self,
        embedding: Tensor,
        hidden: Tensor,
        state: StateTensors,
        block_tables: Tensor,
        context_lens: Tensor,
        counts: Tensor,
        count: int,
    ) -> Tensor:
        """As `HybridModel.drafts`, from the embeddings [b, w, d] of the next tokens."""
        assert self._block is not None
        described, drafting = self._block
        places = block_tables, context_lens, counts
        return step.drafts(
            described.model, drafting, embedding, hidden, self._describe(state), *places, count
        )

    def _suits(self, x: Tensor, kv: Tensor, layers: _Described, rows: int) -> bool:
        dtype = self.weights.embeddings.dtype
        return calls.suits(x) and x.dtype == kv.dtype == dtype and rows <= layers.most_rows

    def _describe(self, state: StateTensors) -> step.DescribedState:
        if self._state is None or self._state[0] is not state:
            self._state = state, step.DescribedState.of(state)
        return self._state[1]


def _block(config: ModelConfig, weights: ModelWeights) -> tuple[_Described, step.Drafting] | None:
    mtp = weights.mtp
    if mtp is None or config.mtp_attention_layers != 1:
        return None
    describer = Describer(config)
    try:
        drafting = step.Drafting(
            weights.embeddings.data_ptr(),
            mtp.embedding_norm.data_ptr(),
            mtp.hidden_norm.data_ptr(),
            describer.product(mtp.combine),
            describer.product(weights.score),
        )
        model = describer.model(mtp.layers, mtp.final_norm)
    except UnknownPart:
        return None
    return _Described(model, describer.most_rows), drafting
