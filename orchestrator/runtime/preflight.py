"""Finds out that something cannot be served, before anything slow starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.spec import ClusterSpec
from workers.engine.vllm.flags import ModelShape, Sizes, model_problems

_HINT = "name a folder in Hugging Face layout: --model DIR, or model.path in the spec"


def check_model(path: str) -> None:
    """Raise UserError when `path` is no folder with a config and weights; says what is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist", _HINT)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json", _HINT)
    if next(folder.glob("*.safetensors"), None) is None:
        raise UserError(f"model folder {folder} has no *.safetensors weights", _HINT)


def check_vllm(spec: ClusterSpec) -> None:
    """Raise UserError for what vLLM would find out of a model and a layout minutes later."""
    if spec.decode.engine != "vllm":
        return
    config = Path(spec.model.path) / "config.json"
    try:
        model = ModelShape.of(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{config} cannot be read: {error}", _HINT) from error
    prefill, decode = spec.prefill.layout, spec.decode.layout
    drafts = 0 if spec.decode.draft_tokens == "auto" else spec.decode.draft_tokens
    problems = [
        *model_problems("prefill.layout", Sizes(1, prefill.tp, 1, prefill.tp), 0, model),
        *model_problems(
            "decode.layout",
            Sizes(decode.kvp, decode.tpa, decode.ep, decode.tpf),
            drafts,
            model,
        ),
    ]
    for role, pool in (("prefill", spec.prefill), ("decode", spec.decode)):
        python = pool.vllm.python
        if python and shutil.which(python) is None:
            problems.append(
                f"{role}.vllm.python {python}: no such program; `make vllm-env` builds one in "
                ".venv-vllm/bin/python"
            )
    if problems:
        raise UserError("; ".join(problems), "docs/vllm.md has what vLLM takes")
