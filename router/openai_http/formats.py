"""The JSON of answers: whole ones and pieces of a stream, for completions and for chat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from google.protobuf.json_format import MessageToDict

from protos.tandem.v1 import common_pb2
from router.core.reasons import Reason
from router.errors import RequestError, presentation
from router.requests import Delta, Finished
from router.text.text_model import TextModel

Json: TypeAlias = dict[str, object]

_COMPLETION_ID, _CHAT_ID = "cmpl-", "chatcmpl-"


def request_id_of(answer_id: str) -> str:
    """The request's own id behind the id that its answer has for OpenAI's clients."""
    return answer_id.removeprefix(_CHAT_ID).removeprefix(_COMPLETION_ID)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a request, whole."""

    deltas: Sequence[Delta]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


class Format(Protocol):
    """How one endpoint writes one answer; `index` is that of the choice."""

    def opening(self, index: int) -> Json | None:
        """The piece before a choice's first text, if the endpoint has one."""

    def piece(self, index: int, delta: Delta) -> Json:
        """New text in a stream."""

    def last_piece(self, index: int, finished: Finished) -> Json:
        """The end of a choice's text in a stream."""

    def whole(self, choices: Sequence[Choice]) -> Json:
        """The answer in one."""

    def usage_piece(self, finished: Sequence[Finished]) -> Json:
        """The last piece of a stream whose client asked for its usage."""


class _Answer:
    """What is the same in all pieces of an answer."""

    def __init__(self, answer_id: str, kind: str, model: str) -> None:
        self._frame: Json = {
            "id": answer_id,
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def with_choice(self, index: int, choice: Json) -> Json:
        return {**self._frame, "choices": [{"index": index, **choice}]}

    def with_all(self, choices: Sequence[Choice], written: Sequence[Json]) -> Json:
        indexed = [{"index": index, **choice} for index, choice in enumerate(written)]
        finished = [choice.finished for choice in choices]
        return {**self._frame, "choices": indexed, "usage": usage(finished)}

    def usage_piece(self, finished: Sequence[Finished]) -> Json:
        return {**self._frame, "choices": [], "usage": usage(finished)}


class CompletionFormat(_Answer):
    """Answers of /v1/completions."""

    def __init__(
        self, request_id: str, model: str, text: TextModel | None, logprobs: int | None
    ) -> None:
        super().__init__(f"{_COMPLETION_ID}{request_id}", "text_completion", model)
        self._text = text
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}  # by choice: characters before the next token

    def opening(self, index: int) -> Json | None:
        return None

    def piece(self, index: int, delta: Delta) -> Json:
        logprobs = self._logprobs_of(index, [delta])
        return self.with_choice(index, self._choice(delta.text, logprobs, None))

    def last_piece(self, index: int, finished: Finished) -> Json:
        return self.with_choice(index, self._choice("", None, finish_reason(finished.reason)))

    def whole(self, choices: Sequence[Choice]) -> Json:
        written = [
            self._choice(
                choice.text,
                self._logprobs_of(index, choice.deltas),
                finish_reason(choice.finished.reason),
            )
            for index, choice in enumerate(choices)
        ]
        return self.with_all(choices, written)

    def _choice(self, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs_of(self, index: int, deltas: Sequence[Delta]) -> Json | None:
        if self._logprobs is None or self._text is None:
            return None
        tokens: list[str] = []
        offsets: list[int] = []
        values: list[float] = []
        tops: list[Json] = []
        offset = self._offsets.get(index, 0)
        for delta in deltas:
            for token_id, (value, top) in zip(delta.token_ids, delta.logprobs, strict=True):
                token = self._shown(token_id)
                tokens.append(token)
                values.append(value)
                offsets.append(offset)
                offset += len(token)
                # The chosen token last, so that it is there in any case; the more likely of two
                # tokens that look alike stays.
                best: Json = {}
                for other, other_value in (*top, (token_id, value)):
                    best.setdefault(self._shown(other), other_value)
                tops.append(best)
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops if self._logprobs else None,
            "text_offset": offsets,
        }

    def _shown(self, token_id: int) -> str:
        assert self._text is not None
        return self._text.token_bytes(token_id).decode(errors="replace")


class ChatFormat(_Answer):
    """Answers of /v1/chat/completions."""

    def __init__(
        self, request_id: str, model: str, text: TextModel | None, logprobs: bool, streamed: bool
    ) -> None:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        super().__init__(f"{_CHAT_ID}{request_id}", kind, model)
        self._text = text
        self._logprobs = logprobs

    def opening(self, index: int) -> Json | None:
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, delta: Delta) -> Json:
        return self._delta(index, {"content": delta.text}, self._logprobs_of([delta]), None)

    def last_piece(self, index: int, finished: Finished) -> Json:
        return self._delta(index, {}, None, finish_reason(finished.reason))

    def whole(self, choices: Sequence[Choice]) -> Json:
        written: list[Json] = [
            {
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs_of(choice.deltas),
                "finish_reason": finish_reason(choice.finished.reason),
            }
            for choice in choices
        ]
        return self.with_all(choices, written)

    def _delta(self, index: int, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
        choice: Json = {"delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self.with_choice(index, choice)

    def _logprobs_of(self, deltas: Sequence[Delta]) -> Json | None:
        if not self._logprobs or self._text is None:
            return None
        content = [
            {
                **self._token(token_id, told.logprob),
                "top_logprobs": [self._token(*other) for other in told.top],
            }
            for delta in deltas
            for token_id, told in zip(delta.token_ids, delta.logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Json:
        assert self._text is not None
        raw = self._text.token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}


def finish_reason(reason: Reason) -> str:
    """OpenAI's word for a good end."""
    return "length" if reason == common_pb2.REASON_LENGTH else "stop"


def usage(finished: Sequence[Finished]) -> Json:
    """How many tokens went in, once for all choices, and came out."""
    prompt_tokens = finished[0].prompt_tokens
    completion_tokens = sum(choice.completion_tokens for choice in finished)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished[0].report.cached_tokens},
    }


def report_json(finished: Finished) -> Json:
    """The request's report, for those who ask for it."""
    report: Json = MessageToDict(
        finished.report, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return report


def error_json(error: RequestError) -> Json:
    """OpenAI's error object."""
    told = presentation(error.reason)
    return error_object(error.message, told.openai_type, error.field, told.openai_code)


def error_object(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> Json:
    """OpenAI's error object from its parts."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
