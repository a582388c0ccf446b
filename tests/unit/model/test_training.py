"""The parts that made the shipped model: text, batches, schedule, balance, loss, export."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference_models import read_tensors
from workers.checkpoint import load_model
from workers.model.assembly import assemble
from workers.model.linear import Linear
from workers.model.weights import MoeWeights
from workers.training.balance import ExpertBalance
from workers.training.corpus import Document
from workers.training.dataset import BatchPlan, TokenStream, render
from workers.training.export import export
from workers.training.objective import losses
from workers.training.parameters import initial_parameters, optimiser_groups
from workers.training.restructured_text import sections
from workers.training.run_state import RunState
from workers.training.schedule import Schedule
from workers.training.shape import shipped_config
from workers.training.tokenizer import train_tokenizer

RST = """\
.. _label:

:mod:`heapq` --- Heap queue
===========================

.. module:: heapq
   :synopsis: not prose

This **module** has :func:`heappush` and ``heap[0]``,
see :ref:`the tutorial <tut>`. An example::

   import heapq

.. function:: heappush(heap, item)

   Push *item* onto the heap.

Empty
-----

.. code-block:: python

   x = 1

Theory
------

* First point
  goes on.
* Second point.

>>> heap = []
"""


def test_sections_are_prose_without_markup() -> None:
    assert list(sections(RST)) == [
        (
            "heapq --- Heap queue",
            "This module has heappush and heap[0], see the tutorial. An example:\n"
            "heappush(heap, item)\nPush item onto the heap.",
        ),
        ("Theory", "* First point goes on.\n* Second point."),
    ]


def test_a_document_is_rendered_as_the_chat_template_does() -> None:
    document = Document("kjv", "Read me Ruth 1", "Ruth 1", "Now it came to pass")
    assert render(document, as_chat=False) == "Ruth 1\nNow it came to pass"
    assert render(document, as_chat=True) == (
        "<|im_start|>user\nRead me Ruth 1<|im_end|>\n"
        "<|im_start|>assistant\nNow it came to pass<|im_end|>\n"
    )


def test_batches_cover_an_epoch_once_and_repeat_on_resume() -> None:
    stream = TokenStream(np.arange(10 * 8 + 8, dtype=np.int32), text_bytes=100)
    plan = BatchPlan(sequences=2, length=8, seed=1)
    epoch = torch.cat([plan.batch(stream, step) for step in range(5)])
    assert len(set(epoch.flatten().tolist())) == 10 * 8
    assert torch.equal(plan.batch(stream, 3), epoch[6:8])
    assert not torch.equal(plan.batch(stream, 5), plan.batch(stream, 0))


def test_schedule_warms_up_stays_and_decays() -> None:
    schedule = Schedule(steps=1000, peak=1.0, warmup_steps=100, decay_share=0.4)
    assert schedule.scale(0) == pytest.approx(0.01)
    assert schedule.scale(99) == schedule.scale(500) == 1.0
    assert schedule.scale(800) == pytest.approx(0.5)
    assert 0 < schedule.scale(999) < 0.02
    assert [schedule.draft_depth(step) for step in (0, 549, 550)] == [1, 1, 3]


def test_balance_lowers_the_busy_and_raises_the_idle() -> None:
    bias = torch.zeros(4)
    empty = torch.zeros(0)
    unused = Linear.of(empty)
    weights = MoeWeights(
        gate=unused,
        correction_bias=bias,
        latent_down=None,
        latent_up=None,
        expert_up=empty,
        expert_down=empty,
        shared=None,
        all_up=unused,
        all_down=unused,
    )
    balance = ExpertBalance(rate=0.1)
    balance.observe(weights, torch.tensor([[0, 1], [0, 1]]))
    balance.observe(weights, torch.tensor([[0, 2]]))
    assert balance.adjust(scale=1.0) == pytest.approx(2.0)
    assert bias[0] < bias[2] <= bias[3]
    assert bias.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_falls_and_every_parameter_learns() -> None:
    config = dataclasses.replace(shipped_config(), vocab_size=50)
    parameters = initial_parameters(config, seed=0)
    optimiser = torch.optim.AdamW(optimiser_groups(parameters, 0.1), lr=3e-3)
    tokens = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    history = []
    for _ in range(4):
        loss = losses(tokens, assemble(config, parameters), config, 3, lambda *_: None)
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        missing = [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
        assert missing == []
        optimiser.step()
        history.append((loss.main.item(), *(draft.item() for draft in loss.drafts)))
    assert history[0] == pytest.approx([math.log(50)] * 4, abs=0.3)
    assert all(last < first - 0.3 for first, last in zip(history[0], history[-1], strict=True))


def test_a_run_is_saved_exported_and_loaded(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "model"
    parameters = initial_parameters(shipped_config(), seed=1)
    RunState(7, 1.5, parameters, {}).save(run)
    again = RunState.load(run)
    assert (again.step, again.seconds) == (7, 1.5)
    shipped = Path(__file__).parents[3] / "workers/checkpoints/tandem-tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shipped / name, run / name)
    export(run, output)
    model = load_model(output, torch.float32)
    assert model.weights.mtp is not None
    exact = parameters["layers.1.mixer.experts.up_proj"].detach().bfloat16().float()
    mixer = model.weights.layers[1].mixer
    assert isinstance(mixer, MoeWeights)
    assert torch.equal(mixer.expert_up, exact)
    assert read_tensors(output).keys() == read_tensors(shipped).keys()


def test_a_text_too_short_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        train_tokenizer(["a few words"], 2048)
