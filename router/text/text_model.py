"""Everything about text that a checkpoint directory says: tokenizer, template, ends, defaults.

Read without transformers, whose import alone takes longer than the router may need to start.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders

from router.text.byte_level import ByteLevelDecoder, TokenBytes, token_bytes
from router.text.chat_template import ChatTemplate, ChatTemplateError
from router.text.general import GeneralDecoder
from router.text.stream import TextStream, TokenDecoder

_SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Longer texts are tokenized in a thread: a megabyte takes most of a second.
_INLINE_CHARACTERS = 1024


class ModelFilesError(Exception):
    """A file of the checkpoint directory that the router needs is missing or broken."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a client's request takes where it says nothing."""

    eos_token_ids: frozenset[int] = frozenset()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What config.json says; None where it says nothing."""

    max_model_tokens: int | None
    vocab_size: int | None


class TextModel:
    """The tokenizer of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self.template = template
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._table = TokenBytes(tokenizer, self._special_ids)

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; long ones are read off the event loop."""
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # Of all ways to encode, only those for batches let go of the GIL.
        (encoding,) = self._tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        ids: list[int] = encoding.ids
        return ids

    def stream(self, stops: Sequence[str], hidden_ids: AbstractSet[int]) -> TextStream:
        """A text stream for one request."""
        decoder: TokenDecoder = (
            ByteLevelDecoder(self._table) if self._byte_level else GeneralDecoder(self._tokenizer)
        )
        return TextStream(decoder, stops, hidden_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """One token on its own, special ones spelled out: for log-probabilities."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level and token_id not in self._special_ids:
            return token_bytes(token)
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()


def load_text_model(folder: Path) -> TextModel | None:
    """The text side of a checkpoint; None when it has no tokenizer, so only token ids work."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelFilesError(f"{path}: {error}") from error
    # Truncation and padding belong to training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read_json(folder / "tokenizer_config.json")
    special_tokens = {
        key: text for key in _SPECIAL_TOKEN_KEYS if (text := _token_text(config.get(key)))
    }
    source = _template_source(folder, config)
    try:
        template = None if source is None else ChatTemplate(source, special_tokens)
    except ChatTemplateError as error:
        raise ModelFilesError(f"{folder}: {error}") from error
    return TextModel(tokenizer, template)


def load_generation_defaults(folder: Path) -> GenerationDefaults:
    """End-of-sequence ids and sampling defaults: generation_config.json before config.json."""
    generation = _read_json(folder / "generation_config.json")
    model = _read_json(folder / "config.json")
    eos = generation.get("eos_token_id", model.get("eos_token_id"))
    defaults = GenerationDefaults()
    return GenerationDefaults(
        eos_token_ids=frozenset(
            [eos] if isinstance(eos, int) else eos if isinstance(eos, list) else []
        ),
        temperature=_number(generation, "temperature", defaults.temperature),
        top_p=_number(generation, "top_p", defaults.top_p),
        top_k=int(_number(generation, "top_k", defaults.top_k)),
        min_p=_number(generation, "min_p", defaults.min_p),
        repetition_penalty=_number(generation, "repetition_penalty", defaults.repetition_penalty),
    )


def load_model_limits(folder: Path) -> ModelLimits:
    """Limits to go by while no worker says better."""
    config = _read_json(folder / "config.json")
    longest, vocabulary = config.get("max_position_embeddings"), config.get("vocab_size")
    return ModelLimits(
        longest if isinstance(longest, int) else None,
        vocabulary if isinstance(vocabulary, int) else None,
    )


def _template_source(folder: Path, config: Mapping[str, object]) -> str | None:
    """The chat template: a file of its own, one in the configuration, or the default of several."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(value: object) -> str | None:
    """A special token is written as its text or as an object with its text."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key)
    return float(value) if isinstance(value, (int, float)) else default


def _read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file; empty when there is none."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path} does not hold a JSON object")
    return value
