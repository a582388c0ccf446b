"""Random hybrid models of many shapes, and transformers' answers to them.

Exists because exactness is a promise about any checkpoint of this architecture, not about the
one that ships: tests draw shapes, write them to disk the way transformers does, rewrite them
the way published checkpoints are, and compare with transformers' own forward pass in float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import NemotronHConfig, NemotronHForCausalLM

from workers.checkpoint.schema import mtp_schema
from workers.model.config import ModelConfig

_NAMES = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A small model; field names are those of config.json, `pattern` is one letter per layer."""

    pattern: str = "ME*-"
    vocab_size: int = 97
    hidden_size: int = 32
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 8
    intermediate_size: int = 48
    mamba_num_heads: int = 4
    mamba_head_dim: int = 16
    n_groups: int = 2
    ssm_state_size: int = 16
    conv_kernel: int = 4
    chunk_size: int = 16
    n_routed_experts: int = 8
    num_experts_per_tok: int = 3
    moe_intermediate_size: int = 24
    moe_shared_expert_intermediate_size: int = 40
    moe_latent_size: int | None = 16
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    use_bias: bool = False
    use_conv_bias: bool = True
    mlp_bias: bool = False
    time_step_min: float = 0.001


SHAPES: dict[str, Shape] = {
    "every_kind": Shape(),
    "no_latent": Shape(pattern="*EME-M", moe_latent_size=None, n_groups=1, num_key_value_heads=1),
    "odd_sizes": Shape(
        pattern="MEM*EM",
        vocab_size=131,
        hidden_size=40,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=7,
        mamba_num_heads=4,
        mamba_head_dim=13,
        n_groups=4,
        ssm_state_size=11,
        chunk_size=7,
        n_routed_experts=9,
        num_experts_per_tok=1,
        moe_intermediate_size=19,
        moe_shared_expert_intermediate_size=23,
        moe_latent_size=10,
    ),
    "grouped_routing": Shape(
        pattern="E*EM",
        n_routed_experts=12,
        n_group=3,
        topk_group=2,
        num_experts_per_tok=4,
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
    ),
    "all_biases": Shape(use_bias=True, mlp_bias=True, conv_kernel=3, chunk_size=5),
    "no_conv_bias": Shape(pattern="MM*", use_conv_bias=False, num_key_value_heads=4),
    "mostly_mamba": Shape(pattern="MM-M*"),
    "only_attention": Shape(pattern="*-*", num_key_value_heads=1),
    "wide_router": Shape(
        pattern="ME*E", n_routed_experts=64, num_experts_per_tok=11, moe_intermediate_size=8
    ),
}


def build_reference(shape: Shape, seed: int) -> NemotronHForCausalLM:
    """A float32 transformers model with seeded weights whose logits are not degenerate."""
    fields = {name: value for name, value in asdict(shape).items() if name != "pattern"}
    config = NemotronHConfig.from_dict(
        {
            "layers_block_type": [_NAMES[letter] for letter in shape.pattern],
            "max_position_embeddings": 8192,
            "attn_implementation": "sdpa",
            "experts_implementation": "eager",  # the grouped kernel refuses odd sizes
            **fields,
        }
    )
    model = _for_inference(NemotronHForCausalLM(config))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            randomise(name, tensor, rng)
    return model


def randomise(name: str, tensor: Tensor, rng: torch.Generator) -> None:
    """Scales at which every layer matters: unit-variance outputs, slow and fast SSM heads."""
    if name.endswith("A_log"):
        tensor.uniform_(-1.0, 2.0, generator=rng)
    elif name.endswith("dt_bias"):
        tensor.uniform_(-6.0, 0.5, generator=rng)
    elif name.endswith("e_score_correction_bias"):
        tensor.uniform_(-0.2, 0.2, generator=rng)
    elif name.endswith(("norm.weight", "norm_f.weight", ".D")):
        tensor.uniform_(0.5, 1.5, generator=rng)
    elif name.endswith("bias"):
        tensor.normal_(0, 0.3, generator=rng)
    elif name.endswith("embeddings.weight"):
        tensor.normal_(0, 1.0, generator=rng)
    else:
        fan_in = tensor.shape[-1] if tensor.ndim > 1 else 1
        tensor.normal_(0, 1.2 * fan_in**-0.5, generator=rng)


def write_reference(folder: Path, shape: Shape, seed: int) -> NemotronHForCausalLM:
    """Write the model as transformers names it in memory: `model.*`, experts stacked."""
    model = build_reference(shape, seed)
    model.save_pretrained(folder, save_original_format=False)
    return model


def write_published(source: Path, target: Path, *, shards: int = 1) -> None:
    """Rewrite a folder of `write_reference` as published checkpoints are.

    That is `backbone.*` names, one tensor per expert, `hybrid_override_pattern` in config.json,
    and, with more than one shard, an index file.
    """
    target.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    letters = {"linear_attention": "M", "full_attention": "*", "moe": "E", "mlp": "-"}
    kinds = config.pop("layers_block_type")
    config["hybrid_override_pattern"] = "".join(letters[kind] for kind in kinds)
    config["num_hidden_layers"] = len(kinds)
    config.pop("mtp_layers_block_type", None)
    config["time_step_limit"] = [0.0, float("inf")]
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")

    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors(source).items():
        published = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
        stem, _, matrix = published.rpartition(".")
        if stem.endswith(".experts"):
            for index, expert in enumerate(tensor):
                tensors[f"{stem}.{index}.{matrix}.weight"] = expert.clone()
        else:
            tensors[published] = tensor
    write_tensors(target, tensors, shards=shards)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's safetensors files, by stored name."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                tensors[name] = opened.get_tensor(name)
    return tensors


def write_tensors(folder: Path, tensors: dict[str, Tensor], *, shards: int = 1) -> None:
    """Write model.safetensors, or several files and their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    places = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def load_reference(folder: Path) -> NemotronHForCausalLM:
    """transformers' model of any checkpoint folder, float32; it leaves `mtp.*` tensors out."""
    model = NemotronHForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="eager"
    )
    assert isinstance(model, NemotronHForCausalLM)
    return _for_inference(model)


def _for_inference(model: NemotronHForCausalLM) -> NemotronHForCausalLM:
    for module in model.modules():
        module.training = False
    return model


@torch.no_grad()
def reference_greedy(
    model: NemotronHForCausalLM, prompt: Sequence[int], max_tokens: int
) -> list[int]:
    """Greedy tokens of transformers with its cache; end-of-sequence tokens do not stop it."""
    fed = torch.tensor([list(prompt)])
    cache = None
    tokens: list[int] = []
    for _ in range(max_tokens):
        out = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        tokens.append(int(out.logits[0, -1].argmax()))
        fed = torch.tensor([[tokens[-1]]])
    return tokens


def write_drafting(folder: Path, shape: Shape, seed: int) -> NemotronHForCausalLM:
    """Write a model as published, with a seeded MTP block of an attention and an MLP layer.

    Returns transformers' model, which has no such block: it is the reference without drafts.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = write_reference(Path(scratch), shape, seed)
        write_published(Path(scratch), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*-"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = read_tensors(folder)
    rng = torch.Generator().manual_seed(seed + 1)
    for name, expected in mtp_schema(ModelConfig.from_file(folder)).items():
        tensors[name] = torch.empty(expected.shape)
        randomise(name, tensors[name], rng)
    write_tensors(folder, tensors)
    return model
