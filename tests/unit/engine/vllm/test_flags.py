"""Tandem's words as vLLM's, and what vLLM refuses."""

from __future__ import annotations

import pytest

from workers.engine.vllm.flags import (
    ModelShape,
    Sizes,
    argument_problem,
    flags,
    layout_problems,
    model_problems,
    version_problem,
)

_DENSE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_MLA = {**_DENSE, "kv_lora_rank": 512, "num_nextn_predict_layers": 1}


def _flags(sizes: Sizes, device: str, draft_tokens: int = 0) -> dict[str, object]:
    return dict(
        flags(
            sizes,
            model="/m",
            name="m",
            dtype="bfloat16",
            device=device,
            max_requests=8,
            kv_tokens=1024,
            longest_tokens=4096,
            draft_tokens=draft_tokens,
        )
    )


def test_helix_words_become_vllms() -> None:
    made = _flags(Sizes(kvp=4, tpa=1, ep=4, tpf=1), "cuda", draft_tokens=3)
    assert made["tensor_parallel_size"] == made["decode_context_parallel_size"] == 4
    assert made["cp_kv_cache_interleave_size"] == 16
    assert made["enable_expert_parallel"] is True
    assert made["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 3}
    assert "max_model_len" not in made, "vLLM measures the memory of a GPU itself"
    plain = _flags(Sizes(kvp=1, tpa=2, ep=1, tpf=2), "cuda")
    assert (plain["tensor_parallel_size"], plain["enable_expert_parallel"]) == (2, False)
    assert plain.keys() & {"speculative_config", "cp_kv_cache_interleave_size"} == set()


def test_on_a_cpu_memory_is_what_the_spec_says() -> None:
    made = _flags(Sizes(1, 1, 1, 1), "cpu")
    assert (made["block_size"], made["num_gpu_blocks_override"]) == (32, 33)
    assert made["max_model_len"] == 1024


def test_only_on_a_cpu_is_nixl_kept_from_taking_a_core() -> None:
    assert str(_flags(Sizes(1, 1, 1, 1), "cpu")["worker_extension_cls"]).endswith("QuietNixl")
    assert "worker_extension_cls" not in _flags(Sizes(1, 1, 1, 1), "cuda")


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (Sizes(kvp=2, tpa=2, ep=1, tpf=4), "set kvp to 1 or 4"),
        (Sizes(kvp=1, tpa=4, ep=2, tpf=2), "set ep to 1 or 4"),
    ],
)
def test_layouts_that_vllm_has_no_flags_for_are_refused(sizes: Sizes, says: str) -> None:
    (problem,) = layout_problems("decode.layout", sizes)
    assert problem.endswith(says)
    assert layout_problems("decode.layout", Sizes(4, 1, 4, 1)) == []


@pytest.mark.parametrize(
    ("config", "sizes", "draft_tokens", "says"),
    [
        (_DENSE, Sizes(1, 3, 1, 3), 0, "do not divide the model's 8 attention heads"),
        (_DENSE, Sizes(2, 1, 1, 2), 0, "only for MLA models"),
        ({**_MLA, "mamba_num_heads": 4}, Sizes(2, 1, 1, 2), 0, "no decode context parallelism"),
        (_DENSE, Sizes(1, 1, 1, 1), 2, "the model has no MTP layers"),
        ({"text_config": _DENSE}, Sizes(1, 3, 1, 3), 0, "8 attention heads"),
    ],
)
def test_what_vllm_asserts_of_a_model_is_known_from_its_config(
    config: dict[str, object], sizes: Sizes, draft_tokens: int, says: str
) -> None:
    (problem,) = model_problems("decode.layout", sizes, draft_tokens, ModelShape.of(config))
    assert says in problem
    assert model_problems("decode.layout", Sizes(2, 1, 2, 1), 1, ModelShape.of(_MLA)) == []


def test_arguments_that_follow_from_the_spec_are_refused_and_others_are_not() -> None:
    assert argument_problem("--tensor_parallel_size=2") == (
        "--tensor-parallel-size follows from layout; leave it out"
    )
    assert argument_problem("--max-num-batched-tokens=8192") is None
    assert argument_problem("8192") is None


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0", "0.33.1rc2.dev7+g0123456", "0.32.0+cpu"])
def test_the_releases_that_the_binding_was_read_against_are_taken(version: str) -> None:
    assert version_problem(version) is None


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "0.3.3", "1.32.0", "dev"])
def test_another_release_is_refused_with_those_that_would_do(version: str) -> None:
    problem = version_problem(version)
    assert problem is not None
    assert version in problem
    assert "0.32 or 0.33" in problem
