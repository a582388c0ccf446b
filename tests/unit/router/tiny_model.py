"""A checkpoint directory without weights: a small byte-level BPE, a chat template, the configs."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
EOS_ID = SPECIAL_TOKENS.index("</s>")
MAX_MODEL_TOKENS = 512
VOCAB_SIZE = 320
TEXTS = ("The quick brown fox jumps over the lazy dog, again and again.", "Und dann? Ja, 🙂 ça va.")
CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'forbidden' %}{{ raise_exception('no such role') }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def byte_level_tokenizer() -> Tokenizer:
    """A tokenizer that can write any text, most of it in single bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def write_tiny_model(folder: Path) -> Path:
    """Write what the router reads of a checkpoint; returns the folder."""
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHAT_TEMPLATE},
    )
    _write(folder / "generation_config.json", {"eos_token_id": [EOS_ID]})
    _write(
        folder / "config.json",
        {"max_position_embeddings": MAX_MODEL_TOKENS, "vocab_size": VOCAB_SIZE},
    )
    return folder


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value))
