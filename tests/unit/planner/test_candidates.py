"""Every layout that is offered is legal, and none twice."""

from __future__ import annotations

import pytest

from orchestrator.planner.candidates import decode_layouts, prefill_layouts
from workers.parallel.layout import ParallelLayout
from workers.perf.known_models import KNOWN_MODELS, known_model
from workers.perf.layouts import Layout


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_layouts_are_legal_for_their_model(name: str) -> None:
    model = known_model(name)
    layouts = list(decode_layouts(model, 64, 72))
    assert len(layouts) == len(set(layouts))
    for one in layouts:
        assert one.ranks <= 64
        assert one.dp * one.kvp * one.tpa == one.tpf * one.ep
        assert one.ep <= max(model.stack.expert_count, 1)
        assert one.kvp == 1 or one.tpa <= model.stack.kv_heads
        assert not one.hopb or one.kvp > 1
        if one.pp == one.dp == 1:
            ParallelLayout(kvp=one.kvp, tpa=one.tpa, tpf=one.tpf, ep=one.ep)


def test_the_usual_layouts_are_among_them() -> None:
    layouts = set(decode_layouts(known_model("deepseek-r1"), 64, 72))
    assert layouts >= {
        Layout(),
        Layout(tpa=8, tpf=8),
        Layout(tpa=8, ep=8),
        Layout(dp=32, ep=32),
        Layout(pp=2, tpa=8, tpf=8),
        Layout(kvp=16, tpa=1, tpf=4, ep=4, hopb=True),
    }


def test_attention_groups_stay_inside_a_domain() -> None:
    layouts = list(decode_layouts(known_model("deepseek-r1"), 64, 8))
    assert max(one.kvp * one.tpa for one in layouts) == 8
    assert max(one.ep for one in layouts) == 64


def test_prefill_has_no_kvp_and_more_stages() -> None:
    layouts = list(prefill_layouts(known_model("llama-3.1-405b"), 64, 8))
    assert {one.kvp for one in layouts} == {1}
    assert {one.pp for one in layouts} == {1, 2, 4, 8, 16}


def test_few_devices_bound_the_size() -> None:
    assert {one.ranks for one in decode_layouts(known_model("llama-3.1-8b"), 3, 8)} == {1, 2}
