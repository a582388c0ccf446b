"""Each compiled kernel gives what its formula gives in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.reference_models import SHAPES
from workers.kernels.cpu import attention, calls, layers, mamba
from workers.kernels.cpu.pages import PlannedPages
from workers.model.config import ModelConfig, parse_config
from workers.model.config_fields import Fields
from workers.model.linear import Linear
from workers.model.paging import WindowPages
from workers.model.state_tensors import StateTensors, by_layer
from workers.model.weights import MambaWeights, MoeWeights

DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EPS = 1e-5
_KIND = {"model_type": "nemotron_h", "max_position_embeddings": 64, "eos_token_id": 2}


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    if not calls.enable():
        pytest.skip("no C++ compiler: kernels were not compiled")
    with torch.inference_mode():
        yield
    calls.disable()


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def assert_close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    allowed = CLOSE[found.dtype] * scale
    torch.testing.assert_close(found.double(), expected.double(), atol=allowed, rtol=allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [5, 16, 70, 256])
def test_residual_sum_and_norm(dtype: torch.dtype, size: int) -> None:
    x, added, weight = (noise(7, size, dtype=dtype, seed=seed) for seed in range(3))
    summed = (x.double() + added.double()).to(dtype)
    rms = (summed.double().square().mean(-1, keepdim=True) + EPS).sqrt()
    found = layers.add_norm(x, added, weight[0], EPS)
    torch.testing.assert_close(x, summed)
    assert_close(found, summed.double() / rms * weight[0].double())
    assert_close(layers.add_norm(summed, None, weight[0], EPS), found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 11, 200])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (130, 50), (7, 2)])
def test_products(dtype: torch.dtype, rows: int, outputs: int, inputs: int) -> None:
    x, weight = noise(rows, inputs, dtype=dtype), noise(outputs, inputs, dtype=dtype)
    bias = noise(outputs, dtype=dtype)
    expected = x.double() @ weight.double().T
    found = layers.Panels(weight, None)(x, relu2=False)
    assert_close(found, expected, scale=inputs**0.5)
    squared = (expected + bias.double()).relu().square()
    found = layers.Panels(weight, bias)(x, relu2=True)
    assert_close(found, squared, scale=inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_relu_keeps_what_is_not_a_number(dtype: torch.dtype) -> None:
    x = noise(9, 37, dtype=dtype)
    x[3, 4] = x[8, 36] = torch.nan
    expected = x.double().relu().square()
    found = layers.square_relu(x).double()
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-2, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_the_product(dtype: torch.dtype) -> None:
    x, weight = noise(3, 32, dtype=dtype), noise(130, 32, dtype=dtype)
    panels = layers.Panels(weight, noise(130, dtype=dtype))
    assert torch.equal(panels.scores(x), panels(x, relu2=False).float())


@pytest.mark.parametrize("count", [1, 16, 37, 200])
def test_the_first_of_the_highest_scores(count: int) -> None:
    scores = noise(3, 4, count).round()  # some are equal
    scores[0, 0] = -torch.inf
    assert torch.equal(layers.highest(scores), scores.argmax(dim=-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize(("narrow", "size"), [(64, 128), (10, 19), (80, 24), (70, 64)])
@pytest.mark.parametrize("tokens", [1, 6, 211])
def test_experts(dtype: torch.dtype, tokens: int, narrow: int, size: int, panels: bool) -> None:
    x = noise(tokens, narrow, dtype=dtype)
    up, down = (noise(5, size, narrow, dtype=dtype, seed=s) / narrow**0.5 for s in (1, 2))
    # The last expert is nobody's.
    indices = torch.stack([torch.randperm(4)[:3] for _ in x])
    scale = noise(tokens, 3).abs()
    hidden = torch.einsum("tl,tkml->tkm", x.double(), up[indices].double()).relu().square()
    every = torch.einsum("tkm,tkml->tkl", hidden, down[indices].double())
    found = layers.experts(x, indices, scale, _experts(up, down, panels))
    assert_close(found, (every * scale.double().unsqueeze(-1)).sum(1), scale=size**0.5)


def _experts(up: Tensor, down: Tensor, panels: bool) -> MoeWeights:
    nothing = Linear(up[0], None, None, None, 0)
    whole = nothing, nothing
    if panels:
        whole = Linear.of(up.flatten(0, 1)), Linear.of(down.flatten(0, 1).t())
    return MoeWeights(nothing, up, None, None, up, down, None, *whole)


def naive_mixer(
    projected: Tensor, history: Tensor, state: Tensor, weights: MambaWeights, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token in float64: output [t, inner], history, state after each token."""
    inner, heads, groups = config.mamba_inner, config.mamba_num_heads, config.mamba_groups
    gate, inputs, dt = torch.split(projected.double(), [inner, config.conv_dim, heads], dim=-1)
    past = torch.cat([history.double().T, inputs])
    state, outputs, states = state.double(), [], []
    dts = functional.softplus(dt + weights.dt_bias.double())
    for token in range(len(projected)):
        window = past[token : token + config.conv_kernel]
        mixed = (window * weights.taps.double()).sum(0)
        if weights.conv_bias is not None:
            mixed = mixed + weights.conv_bias.double()
        mixed = functional.silu(mixed)
        x, b, c = torch.split(mixed, [inner, *[groups * config.ssm_state_size] * 2])
        x = x.view(heads, -1)
        b, c = (part.view(groups, -1).repeat_interleave(heads // groups, 0) for part in (b, c))
        step = dts[token].unsqueeze(-1)
        decay = torch.exp(step * weights.rate.double().unsqueeze(-1)).unsqueeze(-1)
        state = state * decay + (step * x).unsqueeze(-1) * b.unsqueeze(1)
        y = (state @ c.unsqueeze(-1)).squeeze(-1) + weights.skip.double().unsqueeze(-1) * x
        y = (y.flatten() * functional.silu(gate[token])).view(groups, -1)
        y = y / (y.square().mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        outputs.append(y.flatten() * weights.norm.double())
        states.append(state)
    kept = len(past) - config.conv_kernel + 1
    return torch.stack(outputs), past[kept:].T, torch.stack(states)


def mixer(name: str, dtype: torch.dtype) -> tuple[ModelConfig, MambaWeights]:
    config = _config(name)
    inner, heads, channels = config.mamba_inner, config.mamba_num_heads, config.conv_dim
    nothing = Linear(noise(1, 1), None, None, None, 0)
    taps = noise(config.conv_kernel, channels, dtype=dtype)
    weights = MambaWeights(
        in_proj=nothing,
        conv=taps.T,
        conv_bias=noise(channels, dtype=dtype) if config.use_conv_bias else None,
        taps=taps,
        rate=-noise(heads).exp(),
        skip=noise(heads, seed=1),
        dt_bias=noise(heads, seed=2),
        norm=noise(inner, dtype=dtype),
        out_proj=nothing,
    )
    return config, weights


def _config(name: str) -> ModelConfig:
    sizes = asdict(SHAPES[name])
    sizes["hybrid_override_pattern"] = sizes.pop("pattern")
    return parse_config(Fields({**_KIND, **sizes}, name))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["every_kind", "odd_sizes", "all_biases", "no_conv_bias"])
@pytest.mark.parametrize("tokens", [1, 2, 64, 150])
def test_a_prompt_is_the_recurrence(name: str, dtype: torch.dtype, tokens: int) -> None:
    config, weights = mixer(name, dtype)
    heads = config.mamba_num_heads
    projected = noise(tokens, config.mamba_inner + config.conv_dim + heads, dtype=dtype)
    history = noise(config.conv_dim, config.conv_kernel - 1, dtype=dtype)
    state = noise(heads, config.mamba_head_dim, config.ssm_state_size)
    expected, new_history, states = naive_mixer(projected, history, state, weights, config)
    found = mamba.sequence(projected, history, state, weights, config, bounded=0)
    assert_close(found, expected, scale=4)
    torch.testing.assert_close(history.double(), new_history, atol=0, rtol=0)
    torch.testing.assert_close(state.double(), states[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["every_kind", "odd_sizes", "all_biases", "no_conv_bias"])
def test_windows_keep_what_was_accepted(name: str, dtype: torch.dtype) -> None:
    """Two windows: of the first, each request has another number of tokens accepted."""
    config, weights = mixer(name, dtype)
    heads, slots = config.mamba_num_heads, torch.tensor([2, 0, 3])
    state = StateTensors.zeros(
        config, blocks=1, block_size=16, slots=4, draft_tokens=7, dtype=dtype
    )
    state.conv.copy_(noise(*state.conv.shape))
    state.ssm.copy_(noise(*state.ssm.shape))
    layer = config.mamba_layers - 1
    before = [(state.conv[slot, layer].clone(), state.ssm[slot, layer].clone()) for slot in slots]
    size = config.mamba_inner + config.conv_dim + heads
    first, second = (noise(3, width, size, dtype=dtype, seed=width) for width in (8, 3))
    accepted = torch.tensor([1, 4, 8])
    outputs = [
        mamba.SlotWindows.of(state, slots, pending).mix(window, layer, weights, config)
        for window, pending in ((first, torch.zeros_like(accepted)), (second, accepted))
    ]
    for row, (history, ssm) in enumerate(before):
        read = torch.cat([first[row, : accepted[row]], second[row]])
        expected, _, states = naive_mixer(read, history, ssm, weights, config)
        assert_close(outputs[1][row], expected[accepted[row] :], scale=4)
        kept = state.ssm[slots[row], layer].double()
        torch.testing.assert_close(kept, states[accepted[row]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [7, 16, 40])
@pytest.mark.parametrize("queries", [1, 4, 70])
def test_attention_over_pages(dtype: torch.dtype, head_dim: int, queries: int) -> None:
    rows, kv_heads, share, block_tokens, columns = 3, 2, 3, 8, 20
    heads = kv_heads * share
    memory = noise(rows * columns, kv_heads, 4, 2, block_tokens, head_dim, dtype=dtype)
    planes = by_layer(memory)[:, 1]
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
    tables = order.view(rows, columns)
    ends = torch.tensor([[queries], [100], [columns * block_tokens]])
    visible = ends - torch.arange(queries - 1, -1, -1)
    q = noise(rows, queries, heads * head_dim + 5, dtype=dtype)[..., : heads * head_dim]
    found = attention.attend(q, planes, tables, visible, heads)
    for row in range(rows):
        k, v = planes[tables[row]].permute(1, 2, 0, 3, 4).flatten(2, 3).double()
        split = q[row].double().view(queries, kv_heads, share, head_dim)
        scores = torch.einsum("qgsd,gkd->qgsk", split, k) / head_dim**0.5
        hidden = torch.arange(k.shape[1]) >= visible[row][:, None]
        weights = scores.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        expected = torch.einsum("qgsk,gkd->qgsd", weights, v)
        assert_close(found[row], expected.flatten(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_no_query_sees_may_be_anything(dtype: torch.dtype) -> None:
    planes = noise(2, 2, 1, 16, 16, dtype=dtype)
    planes[1] = torch.nan
    planes[0, :, :, 5:] = torch.nan
    tables, visible = torch.tensor([[0, 1]]), torch.tensor([[5]])
    found = attention.attend(noise(1, 1, 16, dtype=dtype), planes, tables, visible, 1)
    assert found.isfinite().all()


@pytest.mark.parametrize("counts", [None, torch.tensor([3, 1, 2])])
def test_planned_pages_are_those_of_the_model(counts: Tensor | None) -> None:
    """A window that fits, one that reaches beyond the blocks of its request, one that opens two."""
    block_tables = torch.tensor([[5, 2, -1, -1], [7, 1, 3, -1], [4, 0, 6, 8]])
    context, width, size = torch.tensor([2, 11, 3]), 3, 4
    planned = PlannedPages.of(block_tables, size, context, width, counts)
    calls.disable()
    expected = WindowPages.of(
        block_tables, size, context, width, share=1, dtype=torch.float32, counts=counts
    )
    assert calls.enable()
    assert isinstance(expected, WindowPages)
    placed = planned.blocks >= 0
    torch.testing.assert_close(planned.blocks[placed], expected.blocks)
    torch.testing.assert_close(planned.offsets[placed], expected.offsets)
    torch.testing.assert_close(planned.visible, expected.visible)
    tables = expected.tables.view(3, -1)
    columns = min(tables.shape[1], planned.tables.shape[1])
    torch.testing.assert_close(planned.tables[:, :columns], tables[:, :columns])

    kv = noise(9, 2, 2, 1, size, 8)
    found, wanted, new = kv.clone(), kv.clone(), noise(9, 2, 1, 8, seed=1)
    for pages, memory in ((planned, found), (expected, wanted)):
        pages.open(memory)
        pages.write(memory[:, 1], new)
    torch.testing.assert_close(found, wanted)


def test_profiles_show_kernels_as_operations() -> None:
    with torch.profiler.profile() as profiler:
        layers.square_relu(noise(4, 4))
    assert "tandem::square_relu" in {event.key for event in profiler.key_averages()}
