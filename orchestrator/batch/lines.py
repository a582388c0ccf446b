"""The lines of `tandem batch`: what a request looks like going in, and an answer coming out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.spec.errors import explain
from protos.tandem.v1 import common_pb2
from router.core.tokens import TokenLogprob
from router.requests import ClientRequest

_DEFAULT_MAX_TOKENS = 64
_FORMS = frozenset({"json_schema", "json_object", "regex"})


class LineError(Exception):
    """A line that cannot be served; the message names the line and the field."""

    def __init__(self, number: int, message: str, line_id: str | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.message = message
        self.line_id = line_id if line_id is not None else str(number)


class BatchLine(BaseModel):
    """One request of the input file. Sampling is greedy unless the line says otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    id: str = ""
    text: str | None = None
    token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    max_tokens: int = _DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int = 0
    stop: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    ignore_eos: bool = False
    top_logprobs: int = 0
    # The form of the answer; one of them.
    json_schema: dict[str, object] | None = None
    json_object: bool = False
    regex: str | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> BatchLine:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("give either text or token_ids")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> BatchLine:
        if (self.json_schema is not None) + self.json_object + (self.regex is not None) > 1:
            raise ValueError("give one of json_schema, json_object and regex")
        return self

    def request(self) -> ClientRequest:
        """The same for the router, which checks everything that needs the model."""
        if self.text is not None:
            prompt: str | Sequence[int] = self.text
        else:
            prompt = self.token_ids or ()
        return ClientRequest(
            prompt=prompt,
            prompt_field="text" if self.text is not None else "token_ids",
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=True,
            top_logprobs=self.top_logprobs,
            grammar=self._grammar(),
            grammar_field=next(iter(self.model_fields_set & _FORMS), ""),
        )

    def _grammar(self) -> common_pb2.Grammar | None:
        if self.json_schema is not None:
            return common_pb2.Grammar(json_schema=json.dumps(self.json_schema))
        if self.regex is not None:
            return common_pb2.Grammar(regex=self.regex)
        return common_pb2.Grammar(json_object=True) if self.json_object else None


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """One line of the output file."""

    line_id: str
    token_ids: Sequence[int]
    text: str
    finish_reason: str
    logprobs: Sequence[TokenLogprob]
    error: str | None = None
    with_top_logprobs: bool = False

    def to_json(self) -> str:
        document: dict[str, object] = {
            "id": self.line_id,
            "token_ids": list(self.token_ids),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "logprobs": [told.logprob for told in self.logprobs],
        }
        if self.with_top_logprobs:
            document["top_logprobs"] = [
                [{"token_id": token_id, "logprob": logprob} for token_id, logprob in told.top]
                for told in self.logprobs
            ]
        if self.error is not None:
            document["error"] = self.error
        return json.dumps(document, ensure_ascii=False)


def failed(error: LineError) -> BatchAnswer:
    """The answer to a line that was not served."""
    return BatchAnswer(error.line_id, (), "", "error", (), error.message)


def parse_line(number: int, raw: bytes) -> BatchLine:
    """The request in line `number` (from 1); without an id it gets the number. Raises LineError."""
    try:
        document = json.loads(raw)
    except UnicodeDecodeError as error:
        raise LineError(number, f"line {number}: is not UTF-8 text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise LineError(number, f"line {number}: is not JSON: {reason}{where}") from error
    if not isinstance(document, dict):
        raise LineError(number, f'line {number}: must be a JSON object, such as {{"text": ..}}')
    given = document.get("id")
    line_id = given if isinstance(given, str) and given else str(number)
    try:
        line = BatchLine.model_validate(document)
    except ValidationError as error:
        problems = explain(error, BatchLine, {}, {}, f"line {number}")
        raise LineError(number, "; ".join(problems), line_id) from error
    return line.model_copy(update={"id": line_id})
