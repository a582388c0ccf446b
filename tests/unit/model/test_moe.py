"""Routing follows the rule, and every way to run experts gives the same sum."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.unit.model.conftest import MakePair
from workers.model import moe
from workers.model.weights import MoeWeights


def moe_layer(make_pair: MakePair, name: str, index: int) -> MoeWeights:
    mixer = make_pair(name).model.weights.layers[index].mixer
    assert isinstance(mixer, MoeWeights)
    return mixer


@pytest.mark.parametrize("tokens", [1, 3, 50])
@pytest.mark.parametrize(("name", "layer"), [("every_kind", 1), ("no_latent", 1)])
def test_all_ways_to_run_experts_agree(
    make_pair: MakePair, name: str, layer: int, tokens: int
) -> None:
    model = make_pair(name).model
    weights = moe_layer(make_pair, name, layer)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, model.config.hidden_size, generator=rng)
    routing = moe.route(x, weights, model.config)
    ways = [moe.experts_grouped, moe.experts_dense, moe.experts]
    if tokens == 1:
        ways.append(moe.experts_gathered)
    outputs = [moe.apply(x, routing, weights, run) for run in ways]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-4)


def test_the_correction_bias_changes_the_choice_and_not_the_weights(make_pair: MakePair) -> None:
    model = make_pair("every_kind").model
    weights = moe_layer(make_pair, "every_kind", 1)
    bias = torch.zeros(8)
    bias[5] = 10.0
    pushed = dataclasses.replace(weights, correction_bias=bias)
    x = torch.randn(20, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    routing = moe.route(x, pushed, model.config)
    assert (routing.indices == 5).any(dim=1).all()
    scores = torch.sigmoid(x @ weights.gate.weight.T).gather(1, routing.indices)
    expected = scores / scores.sum(-1, keepdim=True) * model.config.routed_scaling_factor
    torch.testing.assert_close(routing.weights, expected)


def test_only_the_best_groups_are_used(make_pair: MakePair) -> None:
    model = make_pair("grouped_routing").model
    weights = moe_layer(make_pair, "grouped_routing", 0)
    x = torch.randn(200, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    groups = moe.route(x, weights, model.config).indices // 4
    used = torch.nn.functional.one_hot(groups, 3).amax(1).sum(1)
    assert used.max() <= model.config.topk_group
