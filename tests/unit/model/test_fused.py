"""A step in single calls of compiled code is the step that the model's own modules make."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference_models import randomise
from tests.unit.model.driver import Driver, random_prompt
from workers.checkpoint.schema import model_schema, mtp_schema
from workers.kernels.cpu import calls
from workers.model import HybridModel
from workers.model.assembly import assemble
from workers.model.config import LayerKind, ModelConfig
from workers.training.shape import shipped_config

DTYPES = [torch.float32, torch.bfloat16]
VOCAB = 70
SMALL = replace(
    shipped_config(),
    vocab_size=VOCAB,
    hidden_size=32,
    layers=tuple(LayerKind),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    mamba_num_heads=4,
    mamba_head_dim=16,
    ssm_state_size=16,
    n_routed_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    moe_latent_size=16,
    moe_shared_expert_intermediate_size=40,
)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> Iterator[None]:
    calls.disable()
    if not calls.enable():
        pytest.skip("no C++ compiler: kernels were not compiled")
    yield
    calls.disable()


def build(config: ModelConfig, dtype: torch.dtype, seed: int) -> HybridModel:
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, expected in (model_schema(config) | mtp_schema(config)).items():
        if expected.optional and not config.n_shared_experts:
            continue
        tensor = torch.empty(expected.shape)
        randomise(name, tensor, rng)
        tensors[name] = tensor.to(dtype)
    return HybridModel(config, assemble(config, tensors))


def by_kernels(model: HybridModel) -> HybridModel:
    """The same model, which never runs a step in one call."""
    plain = HybridModel(model.config, model.weights)
    object.__setattr__(plain, "fused", None)
    return plain


def drafts(driver: Driver, hidden: Tensor, counts: list[int], count: int) -> Tensor:
    rows, width, _ = hidden.shape
    rng = torch.Generator().manual_seed(rows + width)
    return driver.model.drafts(
        torch.randint(VOCAB, (rows, width), generator=rng),
        hidden,
        driver.state,
        block_tables=driver.tables(dict.fromkeys(range(rows), 100)),
        context_lens=driver.ints(driver.lengths),
        counts=driver.ints(counts),
        count=count,
    )


def assert_same(fused: Driver, plain: Driver) -> None:
    for field in fields(fused.state):
        pair = (getattr(driver.state, field.name) for driver in (fused, plain))
        torch.testing.assert_close(*pair, atol=0, rtol=0, equal_nan=True, msg=field.name)


CONFIGS = st.builds(
    replace,
    st.just(SMALL),
    layers=st.lists(st.sampled_from(LayerKind), min_size=1, max_size=5).map(tuple),
    mtp_layers=st.sampled_from(["*E", "*-", "-*", "E*E", "*"]).map(
        lambda pattern: tuple(map(LayerKind, pattern))
    ),
    moe_latent_size=st.sampled_from([None, 16, 70]),
    moe_intermediate_size=st.sampled_from([24, 64, 128]),
    n_shared_experts=st.sampled_from([0, 1]),
    mamba_proj_bias=st.booleans(),
    use_conv_bias=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
    norm_topk_prob=st.booleans(),
    num_key_value_heads=st.sampled_from([1, 2, 4]),
)


@settings(max_examples=60, deadline=None)
@given(config=CONFIGS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32))
def test_bit_for_bit(config: ModelConfig, dtype: torch.dtype, seed: int) -> None:
    """Several windows of a batch, any number of whose drafts are accepted, then drafts."""
    rng = random.Random(seed)
    model, rows = build(config, dtype, seed), rng.randint(1, 3)
    assert model.fused is not None
    both = [Driver(each, requests=rows, max_tokens=112) for each in (model, by_kernels(model))]
    prompts = [random_prompt(VOCAB, rng.randint(1, 40), seed=seed + row) for row in range(rows)]
    for driver in both:
        for row, prompt in enumerate(prompts):
            driver.prefill(prompt, request=row)
    for _ in range(4):
        width = rng.randint(1, 4)
        windows = {row: random_prompt(VOCAB, width, rng.getrandbits(30)) for row in range(rows)}
        accepted = [rng.randint(1, width) for _ in range(rows)]
        found, expected = (driver.verify(windows) for driver in both)
        with torch.no_grad():
            assert model.fused.suits_windows(found, both[0].state)
            assert model.fused.suits_drafts(found, both[0].state)
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        torch.testing.assert_close(model.most_likely(found), model.logits(found).argmax(-1))
        counts = [rng.randint(1, width) for _ in range(rows)]
        count = rng.randint(1, 3)
        drafted = [drafts(driver, found, counts, count) for driver in both]
        torch.testing.assert_close(*drafted)
        assert_same(*both)
        for driver in both:
            for row, tokens in enumerate(accepted):
                driver.accept(row, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_shipped_shape_is_known_up_to_the_rows_that_kernels_take(dtype: torch.dtype) -> None:
    model = build(replace(shipped_config(), vocab_size=VOCAB), dtype, seed=1)
    assert model.fused is not None
    state = Driver(model, max_tokens=16).state
    with torch.no_grad():
        for rows, known in ((1, True), (3, True), (300, False)):
            x = torch.zeros(rows, 4, model.config.hidden_size, dtype=dtype)
            assert model.fused.suits_windows(x, state) is known
            assert model.fused.suits_drafts(x, state) is known
        x = torch.zeros(1, 12, model.config.hidden_size, dtype=dtype)
        assert not model.fused.suits_windows(
            x, state
        )  # the kernel of Mamba windows has no room for it
    assert not model.fused.suits_windows(x[:, :1], state)  # gradients are wanted
    assert not model.fused.suits_drafts(x[:, :1].double(), state)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (replace(SMALL, n_group=2, topk_group=1), torch.float32),
        (replace(SMALL, intermediate_size=41), torch.bfloat16),
    ],
    ids=["grouped_routing", "no_panels"],
)
def test_a_model_with_an_unknown_part_runs_kernel_by_kernel(
    config: ModelConfig, dtype: torch.dtype
) -> None:
    model = build(config, dtype, seed=2)
    assert model.fused is None
    driver = Driver(model)
    driver.prefill([1, 2, 3])
    assert driver.verify({0: [4, 5]}).isfinite().all()


def test_a_block_that_attends_twice_drafts_kernel_by_kernel() -> None:
    model = build(replace(SMALL, mtp_layers=(LayerKind.ATTENTION,) * 2), torch.float32, seed=3)
    assert model.fused is not None
    both = [Driver(each, max_tokens=112) for each in (model, by_kernels(model))]
    for driver in both:
        driver.prefill([1, 2, 3])
    hidden = torch.randn(1, 2, model.config.hidden_size)
    with torch.no_grad():
        assert not model.fused.suits_drafts(hidden, both[0].state)
    torch.testing.assert_close(*(drafts(driver, hidden, [2], 3) for driver in both))


def test_without_kernels_nothing_is_described() -> None:
    model = build(SMALL, torch.float32, seed=4)
    described = model.fused
    assert described is not None
    calls.disable()
    try:
        assert build(SMALL, torch.float32, seed=4).fused is None
        with torch.no_grad():
            x = torch.zeros(1, 1, model.config.hidden_size)
            assert not described.suits_windows(x, Driver(model, max_tokens=16).state)
    finally:
        calls.enable()
