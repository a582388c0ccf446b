"""What Tandem's words mean to vLLM, and which combinations vLLM refuses.

One table for the worker that starts vLLM, for the spec that is checked before anything starts, and
for docs/vllm.md. Checked against vLLM 0.32.0 and 0.33.0; a rule names where vLLM has it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VERSIONS = ("0.32", "0.33")
# KV of one block on CPU: vLLM's kernels there want multiples of 32 tokens.
_CPU_BLOCK_TOKENS = 32
_QUIET_NIXL = "workers.engine.vllm.quiet_nixl.QuietNixl"

# What follows from the rest of the spec, and what the router or the hand-off rely on.
OWN_FLAGS = {
    "--model": "model.path",
    "--dtype": "model.dtype",
    "--served-model-name": "model.name",
    "--tensor-parallel-size": "layout",
    "-tp": "layout",
    "--decode-context-parallel-size": "layout",
    "-dcp": "layout",
    "--cp-kv-cache-interleave-size": "layout.interleave",
    "--enable-expert-parallel": "layout.ep",
    "-ep": "layout.ep",
    "--max-num-seqs": "max_requests",
    "--speculative-config": "decode.draft_tokens",
    "--kv-transfer-config": "the hand-off",
    "--kv-events-config": "the prefix index",
    "--disable-log-stats": "the load that routers plan with",
    "--skip-tokenizer-init": "the router, which makes tokens of text",
    "--host": "the router",
    "--port": "router.http",
    # A replica is a worker of its own; a worker is one engine on one node.
    "--data-parallel-size": "workers.min",
    "-dp": "workers.min",
    "--pipeline-parallel-size": "layout",
    "-pp": "layout",
    "--prefill-context-parallel-size": "layout",
    "-pcp": "layout",
}

FlagValue = str | int | bool | None | dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How a worker of N ranks shares the model. Prefill: tpa = tpf = N."""

    kvp: int
    tpa: int
    ep: int
    tpf: int
    interleave: int = 16

    @property
    def ranks(self) -> int:
        return self.kvp * self.tpa


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a checkpoint's config.json the rules ask for; 0 and False where it says nothing."""

    attention_heads: int
    kv_heads: int
    latent_attention: bool  # MLA
    mamba: bool
    mtp_layers: int
    longest_tokens: int

    @classmethod
    def of(cls, config: Mapping[str, object]) -> ModelShape:
        """Read a Hugging Face config.json; that of the text part of a multimodal model."""
        text = config.get("text_config")
        if isinstance(text, Mapping):
            config = {**config, **text}

        def count(*names: str) -> int:
            for name in names:
                value = config.get(name)
                if isinstance(value, int):
                    return value
            return 0

        heads = count("num_attention_heads", "n_head")
        return cls(
            attention_heads=heads,
            kv_heads=count("num_key_value_heads", "num_attention_heads", "n_head"),
            latent_attention=bool(count("kv_lora_rank")),
            mamba=any("mamba" in key or "linear_attention" in key for key in config),
            mtp_layers=count("num_nextn_predict_layers", "mtp_num_hidden_layers"),
            longest_tokens=count("max_position_embeddings"),
        )


def version_problem(version: str) -> str | None:
    """Why this release of vLLM is not one to work with: its engine core has no stable interface."""
    release = ".".join(version.split(".")[:2])
    if release in VERSIONS:
        return None
    return f"vLLM {version} is not one that Tandem works with; install {' or '.join(VERSIONS)}"


def argument_problem(argument: str) -> str | None:
    """Why a user's argument is not for vLLM to hear: the spec, or the worker, decides it."""
    flag = argument.partition("=")[0].replace("_", "-")
    if flag in OWN_FLAGS:
        return f"{flag} follows from {OWN_FLAGS[flag]}; leave it out"
    return None


def layout_problems(field: str, sizes: Sizes) -> list[str]:
    """Why vLLM cannot share any model like this; each names the field, the value and the fix."""
    problems = []
    if sizes.kvp not in (1, sizes.ranks):
        problems.append(
            f"{field}.kvp {sizes.kvp} with {sizes.ranks} ranks: vLLM's NIXL connector wants "
            f"decode_context_parallel_size 1 or that of tensor parallelism (vllm/config/vllm.py); "
            f"set kvp to 1 or {sizes.ranks}"
        )
    if sizes.ep not in (1, sizes.ranks):
        problems.append(
            f"{field}.ep {sizes.ep} with {sizes.ranks} ranks: vLLM spreads experts over all ranks "
            f"or over none (--enable-expert-parallel); set ep to 1 or {sizes.ranks}"
        )
    return problems


def model_problems(field: str, sizes: Sizes, draft_tokens: int, model: ModelShape) -> list[str]:
    """Why vLLM cannot share this model like this, or draft with it."""
    problems = []
    if model.attention_heads and model.attention_heads % sizes.ranks:
        problems.append(
            f"{field}: {sizes.ranks} ranks do not divide the model's {model.attention_heads} "
            "attention heads (vllm/config/model.py, verify_with_parallel_config)"
        )
    if sizes.kvp > 1 and not model.latent_attention:
        problems.append(
            f"{field}.kvp {sizes.kvp}: vLLM hands over state with decode_context_parallel_size "
            "above 1 only for MLA models (vllm/config/vllm.py); set kvp to 1, or engine to native"
        )
    if sizes.kvp > 1 and model.mamba:
        problems.append(
            f"{field}.kvp {sizes.kvp}: vLLM's Mamba layers know no decode context parallelism "
            "(vllm/v1/core/single_type_kv_cache_manager.py); set kvp to 1, or engine to native"
        )
    if draft_tokens and not model.mtp_layers:
        problems.append(
            f"decode.draft_tokens {draft_tokens}: the model has no MTP layers "
            "(num_nextn_predict_layers); set draft_tokens to 0 or auto"
        )
    return problems


def flags(
    sizes: Sizes,
    *,
    model: str,
    name: str,
    dtype: str,
    device: str,
    max_requests: int,
    kv_tokens: int,
    longest_tokens: int,
    draft_tokens: int,
) -> dict[str, FlagValue]:
    """vLLM's engine arguments for one worker, without those of the hand-off and of events.

    `longest_tokens`: what the checkpoint says a sequence may have; 0 when it does not.
    """
    chosen: dict[str, FlagValue] = {
        "model": model,
        "served_model_name": name,
        "dtype": dtype,
        # Text is the router's: tokens come in and tokens go out.
        "skip_tokenizer_init": True,
        "tensor_parallel_size": sizes.ranks,
        "decode_context_parallel_size": sizes.kvp,
        "enable_expert_parallel": sizes.ep > 1,
        "max_num_seqs": max_requests,
        "enable_prefix_caching": True,
    }
    if sizes.kvp > 1:
        chosen["cp_kv_cache_interleave_size"] = sizes.interleave
    if draft_tokens:
        chosen["speculative_config"] = {
            "method": "mtp",
            "num_speculative_tokens": draft_tokens,
        }
    if device == "cpu":
        chosen["worker_extension_cls"] = _QUIET_NIXL
        chosen["block_size"] = _CPU_BLOCK_TOKENS
        # One block holds nothing: vLLM's null block.
        chosen["num_gpu_blocks_override"] = kv_tokens // _CPU_BLOCK_TOKENS + 1
        if longest_tokens > kv_tokens:
            chosen["max_model_len"] = kv_tokens
    return chosen
