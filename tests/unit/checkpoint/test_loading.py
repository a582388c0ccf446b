"""Any mixture of plain, FP8 and NVFP4 matrices loads as what it stands for, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference_models import write_tensors
from tests.unit.checkpoint.mixed import CONFIG, FORMS, Mixed, write_mixed
from tests.unit.checkpoint.super_release import quantisation_of
from workers.checkpoint import Checkpoint, load_model
from workers.model import CheckpointError, ModelConfig


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "release")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return Checkpoint(folder, ModelConfig.from_file(folder)).load(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_loads_as_its_dequantised_weights(mixed: Mixed, dtype: torch.dtype) -> None:
    loaded = load(mixed.folder, dtype)
    assert loaded.keys() == mixed.weights.keys()
    for name, weight in mixed.weights.items():
        kept = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        assert loaded[name].dtype == kept
        assert torch.equal(loaded[name], weight.to(kept)), name


def test_the_model_of_a_mixture_speaks(mixed: Mixed) -> None:
    model = load_model(mixed.folder)
    assert model.config == mixed.config
    assert model.weights.mtp is not None
    logits = model.logits(torch.ones(1, 64, dtype=torch.bfloat16))
    assert torch.isfinite(logits).all()


def test_scales_of_one_element_may_have_a_dimension(mixed: Mixed, tmp_path: Path) -> None:
    flat = {
        name: tensor.reshape(1) if tensor.ndim == 0 else tensor
        for name, tensor in mixed.stored.items()
    }
    folder = rewritten(mixed, tmp_path, lambda stored: stored.update(flat))
    loaded = load(folder)
    assert all(torch.equal(loaded[name], weight) for name, weight in mixed.weights.items())


def test_scales_of_activations_and_kv_may_be_absent(mixed: Mixed, tmp_path: Path) -> None:
    def drop(stored: dict[str, Tensor]) -> None:
        for name in list(stored):
            if name.endswith(("input_scale", "k_scale", "v_scale")):
                del stored[name]

    loaded = load(rewritten(mixed, tmp_path, drop))
    assert all(torch.equal(loaded[name], weight) for name, weight in mixed.weights.items())


def test_kv_scales_that_the_config_does_not_promise_are_refused(
    mixed: Mixed, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(mixed.folder, tmp_path / "unpromised"))
    quantisation = quantisation_of(FORMS)
    del quantisation["kv_cache_scheme"]
    text = json.dumps({**CONFIG, "quantization_config": quantisation})
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"2 unexpected tensors: .*k_proj\.k_scale"):
        load(folder)


def test_the_precision_map_may_lie_beside_config_json(mixed: Mixed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixed.folder, tmp_path / "beside"))
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"expected F32 or BF16 or F16, found F8_E4M3"):
        load(folder)
    quantisation = {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": "FP8",
        "quantized_layers": {
            module: {"quant_algo": form, **({"group_size": 16} if form == "NVFP4" else {})}
            for module, form in FORMS.items()
        },
    }
    text = json.dumps({"producer": {"name": "modelopt"}, "quantization": quantisation})
    (folder / "hf_quant_config.json").write_text(text, encoding="utf-8")
    loaded = load(folder)
    assert all(torch.equal(loaded[name], weight) for name, weight in mixed.weights.items())


def rewritten(mixed: Mixed, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of the checkpoint with its stored tensors changed."""
    folder = tmp_path / "rewritten"
    folder.mkdir()
    shutil.copy(mixed.folder / "config.json", folder)
    stored = dict(mixed.stored)
    edit(stored)
    write_tensors(folder, stored)
    return folder


EXPERT = "backbone.layers.1.mixer.experts.5.up_proj"
FP8_MODULE = "backbone.layers.0.mixer.in_proj"


@pytest.mark.parametrize(
    ("name", "tensor", "parts"),
    [
        (
            f"{EXPERT}.weight_scale",
            torch.ones(48, 3).to(torch.float8_e4m3fn),
            [f"'{EXPERT}.weight_scale'", "expected [48, 2]", "for NVFP4", "found [48, 3]"],
        ),
        (
            f"{EXPERT}.weight",
            torch.zeros(48, 32, dtype=torch.uint8),
            [f"'{EXPERT}.weight'", "expected [48, 16]", "found [48, 32]"],
        ),
        (
            f"{EXPERT}.weight_scale_2",
            None,
            ["'layers.1.mixer.experts.5.up_proj.weight_scale_2' is missing", "found none"],
        ),
        (
            f"{FP8_MODULE}.weight_scale",
            None,
            ["'layers.0.mixer.in_proj.weight_scale' is missing", "expected shape []"],
        ),
        (
            f"{FP8_MODULE}.weight_scale",
            torch.ones(336),
            [f"'{FP8_MODULE}.weight_scale'", "expected []", "for FP8", "found [336]"],
        ),
        (
            f"{FP8_MODULE}.weight_scale",
            torch.tensor(1, dtype=torch.int32),
            [f"'{FP8_MODULE}.weight_scale'", "expected F32", "found I32"],
        ),
        (
            f"{FP8_MODULE}.weight",
            torch.zeros(336, 64, dtype=torch.bfloat16),
            [f"'{FP8_MODULE}.weight'", "expected F8_E4M3", "for FP8", "found BF16"],
        ),
        (
            f"{FP8_MODULE}.weight",
            torch.zeros(336, 64).to(torch.float8_e5m2),
            [f"'{FP8_MODULE}.weight'", "expected F8_E4M3", "found F8_E5M2"],
        ),
        (
            "backbone.layers.0.mixer.D",
            torch.zeros(16, dtype=torch.int64),
            ["'backbone.layers.0.mixer.D'", "expected F32 or BF16 or F16", "found I64"],
        ),
        (
            "backbone.layers.0.mixer.conv1d.weight_scale",
            torch.tensor(1.0),
            ["1 unexpected tensors: 'backbone.layers.0.mixer.conv1d.weight_scale' []"],
        ),
        (
            "model.layers.0.mixer.D",
            torch.zeros(16),
            ["'model.layers.0.mixer.D'", "'backbone.layers.0.mixer.D'", "Keep one"],
        ),
    ],
)
def test_a_bad_tensor_is_named(
    mixed: Mixed, tmp_path: Path, name: str, tensor: Tensor | None, parts: list[str]
) -> None:
    def edit(stored: dict[str, Tensor]) -> None:
        if tensor is None:
            del stored[name]
        else:
            stored[name] = tensor

    folder = rewritten(mixed, tmp_path, edit)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for part in parts:
        assert part in str(caught.value)


def test_progress_counts_every_byte_that_is_read(mixed: Mixed) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = Checkpoint(mixed.folder, mixed.config)
    checkpoint.load(torch.float32, progress=lambda done, total: seen.append((done, total)))
    unread = ("input_scale", "k_scale", "v_scale")
    expected = sum(t.nbytes for name, t in mixed.stored.items() if not name.endswith(unread))
    done = [count for count, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (expected, expected)
    assert {total for _, total in seen} == {expected}
    largest = max(tensor.nbytes for tensor in mixed.stored.values())
    steps = [after - before for before, after in zip([0, *done], done, strict=False)]
    assert max(steps) <= largest + 8
