"""Both naming schemes load to the same weights; a bad checkpoint is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference_models import load_reference, read_tensors, write_tensors
from tests.unit.model.conftest import MakePair
from tests.unit.model.driver import Driver, random_prompt
from workers.checkpoint import load_model
from workers.model import CheckpointError


def flatten(record: object) -> list[Tensor]:
    """All tensors of nested weight records, in order."""
    if isinstance(record, Tensor):
        return [] if record.is_mkldnn else [record]  # a second copy in an opaque layout
    if isinstance(record, tuple):
        return [tensor for item in record for tensor in flatten(item)]
    if is_dataclass(record):
        return [t for field in fields(record) for t in flatten(getattr(record, field.name))]
    return []


@pytest.mark.parametrize("name", ["every_kind", "no_latent", "all_biases", "grouped_routing"])
def test_both_schemes_load_to_the_same_weights(make_pair: MakePair, name: str) -> None:
    pair = make_pair(name)
    published = load_model(pair.published, torch.float32)
    assert published.config == pair.model.config
    ours, theirs = flatten(pair.model.weights), flatten(published.weights)
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_transformers_reads_the_rewritten_scheme(make_pair: MakePair) -> None:
    pair = make_pair("every_kind")
    again = load_reference(pair.published).state_dict()
    for name, tensor in pair.reference.state_dict().items():
        assert torch.equal(again[name], tensor)


def test_bfloat16_stays_close_and_keeps_state_in_float32(make_pair: MakePair) -> None:
    pair = make_pair("no_conv_bias")
    model = load_model(pair.stacked, torch.bfloat16)
    prompt = random_prompt(model.config.vocab_size, 80, seed=1)
    driver, exact = Driver(model), Driver(pair.model)
    hidden, expected = driver.prefill(prompt), exact.prefill(prompt)
    assert hidden.dtype == torch.bfloat16
    assert model.logits(hidden).dtype == torch.float32
    assert torch.cosine_similarity(hidden.float(), expected, dim=-1).min() > 0.98
    step, expected_step = driver.decode({0: 3}), exact.decode({0: 3})
    assert torch.cosine_similarity(step.float(), expected_step, dim=-1).min() > 0.98
    assert driver.state.ssm.dtype == torch.float32


def broken_copy(source: Path, target: Path, edit: dict[str, Tensor | None]) -> Path:
    """A copy of a single-file checkpoint with tensors replaced, added or (None) taken out."""
    shutil.copytree(source, target)
    tensors = read_tensors(target)
    for name, tensor in edit.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    write_tensors(target, tensors)
    return target


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (
            {"model.layers.0.mixer.A_log": None},
            ["'layers.0.mixer.A_log' is missing", "expected shape [4]", "found none"],
        ),
        (
            {"model.layers.2.mixer.k_proj.weight": torch.zeros(16, 31)},
            ["'model.layers.2.mixer.k_proj.weight'", "expected [16, 32]", "found [16, 31]"],
        ),
        (
            {"model.layers.1.mixer.experts.up_proj": torch.zeros(8, 24, 15)},
            ["experts.up_proj", "expected [8, 24, 16]", "found [8, 24, 15]"],
        ),
        (
            {"model.layers.9.norm.weight": torch.zeros(32)},
            ["1 unexpected tensors", "'model.layers.9.norm.weight' [32]"],
        ),
        ({"lm_head.weight": None}, ["'lm_head.weight' is missing", "[97, 32]"]),
    ],
)
def test_a_bad_tensor_is_named(
    make_pair: MakePair, tmp_path: Path, edit: dict[str, Tensor | None], parts: list[str]
) -> None:
    folder = broken_copy(make_pair("every_kind").stacked, tmp_path / "bad", edit)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_expert_is_named(make_pair: MakePair, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(make_pair("every_kind").published, folder)
    tensors = read_tensors(folder)
    del tensors["backbone.layers.1.mixer.experts.5.down_proj.weight"]
    write_tensors(folder, tensors, shards=2)
    with pytest.raises(CheckpointError, match=r"experts\.5\.down_proj\.weight' is missing"):
        load_model(folder)


def test_tied_embeddings_need_no_head(make_pair: MakePair, tmp_path: Path) -> None:
    folder = broken_copy(
        make_pair("every_kind").stacked, tmp_path / "tied", {"lm_head.weight": None}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = load_model(folder)
    assert model.weights.lm_head is model.weights.embeddings


def test_unreadable_files_are_named(make_pair: MakePair, tmp_path: Path) -> None:
    source = make_pair("every_kind").published
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path / "nowhere")
    shard = "model-00002-of-00002.safetensors"
    lost = shutil.copytree(source, tmp_path / "lost")
    (lost / shard).unlink()
    with pytest.raises(CheckpointError, match=f"missing files: {shard}"):
        load_model(lost)
    cut = shutil.copytree(source, tmp_path / "cut")
    (cut / shard).write_bytes((source / shard).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{shard}: cannot be read as safetensors"):
        load_model(cut)
    bare = shutil.copytree(source, tmp_path / "bare")
    (bare / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_model(bare)
