"""The checkpoint in the repository loads everywhere and says the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.reference_models import load_reference, read_tensors, reference_greedy
from tests.unit.model.driver import Driver
from workers.checkpoint import load_model
from workers.checkpoint.schema import model_schema, mtp_schema
from workers.model import HybridModel
from workers.training.export import DEFAULT_OUTPUT

FOLDER = Path(__file__).parents[3] / DEFAULT_OUTPUT
PROMPTS = (
    "In the beginning",
    "<s><|im_start|>user\nTell me about Lists<|im_end|>\n<|im_start|>assistant\n",
    "And it came to pass, that " * 40,
)


@pytest.fixture(scope="module")
def model(operations: str) -> HybridModel:
    return load_model(FOLDER, torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_it_fits_the_repository() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12_000_000


def test_names_and_dtypes_are_the_published_ones(model: HybridModel) -> None:
    tensors = read_tensors(FOLDER)
    assert "backbone.layers.1.mixer.experts.15.down_proj.weight" in tensors
    assert "mtp.layers.0.eh_proj.weight" in tensors
    assert "mtp.layers.1.final_layernorm.weight" in tensors
    for name, tensor in tensors.items():
        expected = torch.float32 if "correction_bias" in name else torch.bfloat16
        assert tensor.dtype == expected
    experts = 2 * model.config.n_routed_experts - 2  # stacked in the schema, apart in the file
    schema = model_schema(model.config) | mtp_schema(model.config)
    moe_layers = sum(name.endswith("experts.up_proj") for name in schema)
    assert len(tensors) == len(schema) + moe_layers * experts


def test_greedy_tokens_equal_transformers(model: HybridModel, tokenizer: Tokenizer) -> None:
    reference = load_reference(FOLDER)
    for text in PROMPTS:
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        expected = reference_greedy(reference, prompt, 48)
        assert Driver(model, max_tokens=1024).greedy(prompt, 48) == expected


def test_one_token_at_a_time_is_the_same_as_at_once(
    model: HybridModel, tokenizer: Tokenizer
) -> None:
    """Its time_step_min is low enough that scan and step agree."""
    prompt = tokenizer.encode(PROMPTS[0], add_special_tokens=False).ids
    driver = Driver(model)
    tokens = driver.greedy(prompt, 40)
    whole = Driver(model).prefill([*prompt, *tokens[:-1]])
    assert model.logits(whole[len(prompt) - 1 :]).argmax(-1).tolist() == tokens


def test_the_chat_template_is_what_it_was_trained_on(tokenizer: Tokenizer) -> None:
    chat = AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "Tell me about Lists"}]
    text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == PROMPTS[1]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids[:2] == [1, 3]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "Grüße, 世界! \t\n  🙂 naïve"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_both_end_tokens_are_named() -> None:
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 4]
