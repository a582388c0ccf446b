"""What compiled steps (`workers.kernels.cpu.step`) are told of a model: where its weights are.

Exists so that the model's own modules stay the definition of what is computed, and to say which
parts compiled code does not know.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

from torch import Tensor

from workers.kernels.cpu import layers, step
from workers.kernels.cpu.layers import Product
from workers.kernels.cpu.mamba import MambaLayer
from workers.model import moe
from workers.model.config import LayerKind, ModelConfig
from workers.model.linear import Linear
from workers.model.weights import (
    AttentionWeights,
    LayerWeights,
    MambaWeights,
    MlpWeights,
    MoeWeights,
)

_KINDS = {  # as in step.cpp
    LayerKind.MAMBA: 0,
    LayerKind.ATTENTION: 1,
    LayerKind.MOE: 2,
    LayerKind.MLP: 3,
}


class UnknownPart(Exception):
    """A part that compiled steps do not have."""


class Describer:
    """Describes layers, and notes what they have in common.

    Attributes:
        most_rows: tokens up to which every part computes in the way that compiled steps have.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.most_rows = sys.maxsize
        self._widest = 2 * config.hidden_size  # an embedding and a hidden state side by side

    def product(self, linear: Linear | None) -> Product:
        """A product, which has to be one that panels would make anyway."""
        if linear is None:
            return Product()
        if linear.panels is None:
            raise UnknownPart
        self.most_rows = min(self.most_rows, linear.most_panel_rows)
        self._widest = max(self._widest, *linear.weight.shape)
        return linear.panels.product

    def _layer(self, layer: LayerWeights, index: int) -> step.Layer:
        """One layer, the `index`-th of those that keep the same state."""
        described = step.Layer(_KINDS[layer.kind], index, layer.norm.data_ptr())
        pair: tuple[Linear | None, Linear | None]
        match layer.mixer:
            case MambaWeights(described=MambaLayer() as mamba) as mixer:
                pair = mixer.in_proj, mixer.out_proj
                described.mamba = ctypes.pointer(mamba)
            case AttentionWeights() as mixer:
                pair = mixer.qkv, mixer.out
            case MlpWeights() as mixer:
                pair = mixer.up, mixer.down
            case MoeWeights() as mixer:
                pair = self._experts(mixer, described)
            case _:
                raise UnknownPart
        described.inward, described.outward = map(self.product, pair)
        return described

    def model(self, every: Iterable[LayerWeights], final_norm: Tensor) -> step.Model:
        """The layers, with the norm after them; after all of the rest has been described."""
        config = self._config
        counts = dict.fromkeys(LayerKind, 0)
        described = []
        for layer in every:
            described.append(self._layer(layer, counts[layer.kind]))
            counts[layer.kind] += 1
        return step.Model(
            (step.Layer * len(described))(*described),
            final_norm.data_ptr(),
            len(described),
            config.hidden_size,
            self._widest,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.n_routed_experts,
            config.num_experts_per_tok,
            config.expert_size,
            config.moe_intermediate_size,
            config.norm_topk_prob,
            config.routed_scaling_factor,
            config.layer_norm_epsilon,
        )

    def _experts(
        self, mixer: MoeWeights, described: step.Layer
    ) -> tuple[Linear | None, Linear | None]:
        if self._config.n_group > 1:
            raise UnknownPart
        tokens = moe.most_tasks(mixer) // self._config.num_experts_per_tok
        self.most_rows = min(self.most_rows, tokens)
        described.gate = self.product(mixer.gate)
        described.narrow = self.product(mixer.latent_down)
        described.widen = self.product(mixer.latent_up)
        described.correction = mixer.correction_bias.data_ptr()
        panels = layers.expert_panels(mixer)
        described.in_panels = panels is not None
        if panels is None:
            described.expert_up = mixer.expert_up.data_ptr()
            described.expert_down = mixer.expert_down.data_ptr()
        else:
            described.expert_up, described.expert_down = (each.panels for each in panels)
        return (None, None) if mixer.shared is None else (mixer.shared.up, mixer.shared.down)
