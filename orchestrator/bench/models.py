"""Seeded random hybrids for comparisons that a published checkpoint does not allow.

Exists because vLLM on CPU cannot run non-gated experts, and because a model that is large enough
for arithmetic and memory to count need not be trained to be measured: time does not depend on what
the weights are. Folders follow the published scheme (`backbone.*` names and a
`hybrid_override_pattern`), which transformers, vLLM and the native engine read alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.checkpoint.schema import model_schema, published_name
from workers.model.config import LayerKind, ModelConfig

_SEED = 20261121
_MLP_ROUNDING = 64
# What a folder is made by; raise it when the same shape would be written differently.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class HybridShape:
    """A hybrid of M, * and - layers; field names are those of config.json."""

    hybrid_override_pattern: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mamba_num_heads: int
    mamba_head_dim: int
    n_groups: int
    ssm_state_size: int
    conv_kernel: int
    chunk_size: int
    max_position_embeddings: int = 8192

    def document(self) -> dict[str, object]:
        """The content of config.json."""
        return {
            "architectures": ["NemotronHForCausalLM"],
            "model_type": "nemotron_h",
            "dtype": "float32",
            "num_hidden_layers": len(self.hybrid_override_pattern),
            "mlp_hidden_act": "relu2",
            "mamba_hidden_act": "silu",
            "expand": self.mamba_num_heads * self.mamba_head_dim // self.hidden_size,
            "use_conv_bias": True,
            "use_bias": False,
            "mlp_bias": False,
            "attention_bias": False,
            "mamba_proj_bias": False,
            "mamba_ssm_cache_dtype": "float32",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **asdict(self),
        }


# About 100 M parameters, most of them in matrices that every step reads.
HUNDRED_MILLION = HybridShape(
    hybrid_override_pattern="M-M-M-*M-M-M-M-*M-M-M-",
    vocab_size=8192,
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    num_key_value_heads=2,
    head_dim=64,
    mamba_num_heads=24,
    mamba_head_dim=64,
    n_groups=2,
    ssm_state_size=64,
    conv_kernel=4,
    chunk_size=128,
)


def without_experts(config: ModelConfig) -> HybridShape:
    """The same model with an MLP for each layer of experts, and without its MTP block.

    The MLP has as many parameters as a token uses in a layer of experts.
    """
    d = config.hidden_size
    experts = 2 * config.num_experts_per_tok * config.moe_intermediate_size * config.expert_size
    latent = 0 if config.moe_latent_size is None else 2 * d * config.moe_latent_size
    shared = 2 * d * config.moe_shared_expert_intermediate_size if config.n_shared_experts else 0
    active = -(-(experts + latent + shared) // (2 * d))
    rounded = -(-active // _MLP_ROUNDING) * _MLP_ROUNDING
    letters = {LayerKind.MOE: LayerKind.MLP.value}
    return HybridShape(
        hybrid_override_pattern="".join(letters.get(kind, kind.value) for kind in config.layers),
        vocab_size=config.vocab_size,
        hidden_size=d,
        intermediate_size=rounded or config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        mamba_num_heads=config.mamba_num_heads,
        mamba_head_dim=config.mamba_head_dim,
        n_groups=config.mamba_groups,
        ssm_state_size=config.ssm_state_size,
        conv_kernel=config.conv_kernel,
        chunk_size=config.chunk_size,
        max_position_embeddings=config.max_position_embeddings,
    )


def cache_folder() -> Path:
    """Where made models are kept: $XDG_CACHE_HOME/tandem/bench."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tandem" / "bench"


def made_model(name: str, shape: HybridShape, cache: Path) -> Path:
    """The folder of a model of this shape, written first if it is not there yet."""
    document = json.dumps(shape.document(), indent=2)
    digest = hashlib.sha256(f"{_FORMAT} {_SEED} {document}".encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Others see all of it or nothing, also when two benches start at once or one is killed.
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        made = Path(partial) / "model"
        made.mkdir()
        (made / "config.json").write_text(document + "\n", encoding="utf-8")
        weights = _random_weights(ModelConfig.from_file(made))
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(made)
    return folder


def _random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Float32 weights by published name, at scales that keep activations near unit variance."""
    rng = torch.Generator().manual_seed(_SEED)
    weights = {}
    for name, expected in model_schema(config).items():
        tensor = torch.empty(expected.shape)
        if name.endswith("A_log"):
            tensor.uniform_(-1.0, 2.0, generator=rng)
        elif name.endswith("dt_bias"):
            tensor.uniform_(-6.0, 0.5, generator=rng)
        elif name.endswith(("norm.weight", "norm_f.weight", ".D")):
            tensor.uniform_(0.5, 1.5, generator=rng)
        elif name.endswith("bias"):
            tensor.normal_(0.0, 0.1, generator=rng)
        else:
            fan_in = 1 if name.startswith("embeddings") else tensor.shape[-1]
            tensor.normal_(0.0, fan_in**-0.5, generator=rng)
        weights[published_name(name)] = tensor
    return weights
