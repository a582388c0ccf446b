"""Trains the byte-level BPE of the shipped model and writes its Hugging Face files.

Exists apart from training because the tokenizer is fixed before the first step and everything
after it (data, model shape, chat format) depends on its ids. Byte-level means that no input can
be out of vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from workers.training.corpus import DEFAULT_CACHE, Document, load_documents

# Their positions are their ids.
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS, TURN_START, TURN_END = range(len(SPECIAL_TOKENS))

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer_texts(documents: Iterable[Document]) -> list[str]:
    """What the vocabulary is learned from: training documents, their questions, the roles."""
    texts = [f"{item.question}\n{item.text}" for item in documents if not item.held_out]
    return [*texts, "user\nassistant\nsystem\n"]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of exactly `vocab_size` tokens, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text gave {tokenizer.get_vocab_size()} tokens, not {vocab_size}: it is too short"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "pad_token": SPECIAL_TOKENS[PAD],
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[TURN_END],
        "additional_special_tokens": [SPECIAL_TOKENS[TURN_START], SPECIAL_TOKENS[TURN_END]],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer on the training documents and save it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the corpus")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=8192, help="the model's longest context")
    arguments = parser.parse_args()
    texts = tokenizer_texts(load_documents(arguments.cache))
    tokenizer = train_tokenizer(texts, arguments.vocab_size)
    save_tokenizer(tokenizer, arguments.output, arguments.max_tokens)


if __name__ == "__main__":
    main()
