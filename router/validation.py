"""The one place where what a client sent becomes a request that can be run.

Each refusal names the field, the value and the fix. Both front ends come through here, so a
request that one accepts the other accepts as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from protos.tandem.v1 import common_pb2
from router.config import PriorityClass
from router.errors import refusal
from router.requests import ClientRequest, GenerationRequest
from router.sampling import sampling_params
from router.text.text_model import GenerationDefaults, TextModel

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256
_MAX_ID_CHARACTERS = 128
_UINT32_END = 1 << 32


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request is checked against. A limit of 0 is not known yet, and not checked here."""

    name: str
    max_model_tokens: int
    vocab_size: int
    defaults: GenerationDefaults
    text: TextModel | None


def check_model(name: str, model: ServedModel) -> None:
    """Refuse a model that is not served; the empty name means the served one."""
    if name and name != model.name:
        raise refusal(
            "model",
            f"{name!r} is not served here; use {model.name!r}",
            common_pb2.REASON_UNKNOWN_MODEL,
        )


async def validate(
    client: ClientRequest, model: ServedModel, classes: Sequence[PriorityClass]
) -> GenerationRequest:
    """Check and complete a request; raises RequestError."""
    check_model(client.model, model)
    if len(client.request_id) > _MAX_ID_CHARACTERS:
        raise refusal(
            "request_id",
            f"has {len(client.request_id)} characters; use at most {_MAX_ID_CHARACTERS}",
        )
    class_rank = _class_rank(client.priority_class, classes)
    _check_stops(client, model)
    sampling = sampling_params(client, model.defaults, model.text is not None)
    token_ids = await _token_ids(client, model)
    sampling.max_tokens = _max_tokens(client, len(token_ids), model.max_model_tokens)
    if not 0 <= client.deadline_ms < _UINT32_END:
        raise refusal("deadline_ms", f"{client.deadline_ms} must lie in [0, 2^32); 0 is none")
    return GenerationRequest(
        request_id=client.request_id or uuid.uuid4().hex,
        token_ids=token_ids,
        sampling=sampling,
        stop=tuple(client.stop),
        class_rank=class_rank,
        deadline_ms=client.deadline_ms or None,
        traceparent=client.traceparent,
        tenant=client.tenant,
        repeatable=bool(client.request_id),
        received_s=client.received_s,
    )


def _class_rank(name: str, classes: Sequence[PriorityClass]) -> int:
    names = [priority.name for priority in classes]
    if not name:
        return 0
    if name not in names:
        raise refusal("priority_class", f"{name!r} does not exist; use one of {', '.join(names)}")
    return names.index(name)


def _check_stops(client: ClientRequest, model: ServedModel) -> None:
    if len(client.stop) > _MAX_STOPS:
        raise refusal("stop", f"{len(client.stop)} strings given; use at most {_MAX_STOPS}")
    for stop in client.stop:
        if not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            raise refusal(
                "stop",
                f"a stop string has {len(stop)} characters; use 1 to {_MAX_STOP_CHARACTERS}",
            )
    if client.stop and model.text is None:
        raise refusal("stop", "the model has no tokenizer; use stop_token_ids")
    for token_id in client.stop_token_ids:
        _check_id("stop_token_ids", token_id, model.vocab_size)


async def _token_ids(client: ClientRequest, model: ServedModel) -> Sequence[int]:
    prompt, field = client.prompt, client.prompt_field
    if isinstance(prompt, str):
        if model.text is None:
            raise refusal(field, "the model has no tokenizer; send token ids")
        token_ids: Sequence[int] = await model.text.encode(prompt, client.add_special_tokens)
    else:
        token_ids = prompt
        if token_ids:  # the extremes stand for all: a prompt may have a million ids
            _check_id(field, max(token_ids), model.vocab_size)
            _check_id(field, min(token_ids), model.vocab_size)
    if not token_ids:
        raise refusal(field, "is empty; send at least one token", common_pb2.REASON_EMPTY_PROMPT)
    return token_ids


def _check_id(field: str, token_id: int, vocab_size: int) -> None:
    end = vocab_size or _UINT32_END
    if not 0 <= token_id < end:
        raise refusal(field, f"token id {token_id} is not in the vocabulary; use 0 to {end - 1}")


def _max_tokens(client: ClientRequest, prompt_tokens: int, max_model_tokens: int) -> int:
    field = client.prompt_field
    asked = client.max_tokens
    if asked is not None and not 1 <= asked < _UINT32_END:
        raise refusal("max_tokens", f"{asked} must be at least 1 and below 2^32")
    if not max_model_tokens:
        # No worker to say what fits, and so none to run it either: the dispatcher will tell.
        return asked or client.default_max_tokens or 1
    room = max_model_tokens - prompt_tokens
    if room < 1:
        raise refusal(
            field,
            f"has {prompt_tokens} tokens and the model takes {max_model_tokens} for prompt and "
            f"answer together; shorten it to at most {max_model_tokens - 1}",
            common_pb2.REASON_PROMPT_TOO_LONG,
        )
    if asked is None:
        return min(room, client.default_max_tokens or room)
    if asked > room:
        raise refusal(
            "max_tokens",
            f"{asked} + {prompt_tokens} prompt tokens is more than the {max_model_tokens} that "
            f"the model takes; use at most {room}",
            common_pb2.REASON_PROMPT_TOO_LONG,
        )
    return asked
