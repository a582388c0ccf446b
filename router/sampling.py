"""What a client may ask of sampling, and what it gets where it says nothing."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass

from protos.tandem.v1 import common_pb2
from router.errors import refusal
from router.requests import ClientRequest
from router.text.text_model import GenerationDefaults

MOST_TOP_LOGPROBS = 20
_MOST_SCHEMA_CHARACTERS = 1 << 16
_MOST_REGEX_CHARACTERS = 1 << 12
_UINT32_END = 1 << 32
_UINT64_END = 1 << 64


@dataclass(frozen=True, slots=True)
class _Range:
    least: float
    most: float
    hint: str


# Bounds of OpenAI where it has them. A repetition penalty that rounds to 0 would divide by it.
_TEMPERATURE = _Range(0.0, 2.0, "0 is greedy")
_MIN_P = _Range(0.0, 1.0, "0 keeps every token")
_REPETITION = _Range(0.01, 10.0, "1 is none")
_PENALTY = _Range(-2.0, 2.0, "0 is none")


def sampling_params(
    client: ClientRequest, defaults: GenerationDefaults, has_text: bool
) -> common_pb2.SamplingParams:
    """All of a request's sampling but max_tokens; raises RequestError.

    `has_text`: the model has a tokenizer, without which no grammar can be followed.
    """
    top_p = defaults.top_p if client.top_p is None else client.top_p
    if not 0.0 < top_p <= 1.0:
        raise refusal("top_p", f"{top_p} must lie in (0, 1]; 1 keeps every token")
    top_k = defaults.top_k if client.top_k is None else client.top_k
    if not 0 <= top_k < _UINT32_END:
        raise refusal("top_k", f"{top_k} must lie in [0, 2^32); 0 keeps every token")
    seed = _seed_of(client.request_id) if client.seed is None else client.seed
    if not -(_UINT64_END >> 1) <= seed < _UINT64_END:
        raise refusal("seed", f"{seed} does not fit into 64 bits")
    if not 0 <= client.top_logprobs <= MOST_TOP_LOGPROBS:
        raise refusal("top_logprobs", f"{client.top_logprobs} must lie in [0, {MOST_TOP_LOGPROBS}]")
    if client.top_logprobs and not client.logprobs:
        raise refusal("top_logprobs", f"{client.top_logprobs} needs logprobs; set that to true")
    stop_ids = set(client.stop_token_ids)
    if not client.ignore_eos:
        stop_ids |= defaults.eos_token_ids
    if client.grammar is not None:
        _check_grammar(client.grammar, client.grammar_field, has_text, bool(stop_ids))
    return common_pb2.SamplingParams(
        temperature=_within("temperature", client.temperature, defaults.temperature, _TEMPERATURE),
        top_p=top_p,
        top_k=top_k,
        min_p=_within("min_p", client.min_p, defaults.min_p, _MIN_P),
        repetition_penalty=_within(
            "repetition_penalty",
            client.repetition_penalty,
            defaults.repetition_penalty,
            _REPETITION,
        ),
        presence_penalty=_within("presence_penalty", client.presence_penalty, 0.0, _PENALTY),
        frequency_penalty=_within("frequency_penalty", client.frequency_penalty, 0.0, _PENALTY),
        seed=seed % _UINT64_END,
        stop_token_ids=sorted(stop_ids),
        logprobs=client.logprobs,
        top_logprobs=client.top_logprobs,
        grammar=client.grammar,
    )


def _seed_of(request_id: str) -> int:
    """By chance, but the same for whoever sends a request again under its id, to any router."""
    if not request_id:
        return random.getrandbits(64)
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest())


def _within(field: str, given: float | None, default: float, allowed: _Range) -> float:
    value = default if given is None else given
    if not allowed.least <= value <= allowed.most:  # not-a-number is outside as well
        raise refusal(
            field,
            f"{value} must lie in [{allowed.least:g}, {allowed.most:g}]; {allowed.hint}",
        )
    return value


def _check_grammar(grammar: common_pb2.Grammar, field: str, has_text: bool, stops: bool) -> None:
    """Refuse what no worker could follow; whether it compiles only a worker can tell."""
    if not has_text:
        raise refusal(
            field, "the model has no tokenizer, so its answers have no form; leave it out"
        )
    if not stops:
        raise refusal(
            field,
            "an answer of a given form ends with a stop token; leave ignore_eos out, or name "
            "stop_token_ids",
        )
    match grammar.WhichOneof("kind"):
        case "json_schema":
            _check_schema(field, grammar.json_schema)
        case "regex":
            length = len(grammar.regex)
            if not 1 <= length <= _MOST_REGEX_CHARACTERS:
                raise refusal(
                    field,
                    f"the regex has {length} characters; use 1 to {_MOST_REGEX_CHARACTERS}",
                )
        case "json_object" if grammar.json_object:
            pass
        case _:
            raise refusal(field, "says no form; give json_schema, regex or json_object: true")


def _check_schema(field: str, text: str) -> None:
    if len(text) > _MOST_SCHEMA_CHARACTERS:
        raise refusal(
            field,
            f"the JSON schema has {len(text)} characters; use at most {_MOST_SCHEMA_CHARACTERS}",
        )
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(field, f"the JSON schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise refusal(
            field,
            f"the JSON schema is a {type(schema).__name__}; give an object such as "
            '{"type": "object"}',
        )
