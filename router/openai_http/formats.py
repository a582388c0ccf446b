"""The JSON of answers: whole ones and pieces of a stream, for completions and for chat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from google.protobuf.json_format import MessageToDict

from protos.tandem.v1 import common_pb2
from router.core.reasons import Reason
from router.errors import RequestError, presentation
from router.requests import Delta, Finished
from router.text.text_model import TextModel

Json: TypeAlias = dict[str, object]


class Format(Protocol):
    """How one endpoint writes one answer."""

    def opening(self) -> Json | None:
        """The piece before the first text, if the endpoint has one."""

    def piece(self, delta: Delta) -> Json:
        """New text in a stream."""

    def last_piece(self, finished: Finished) -> Json:
        """The end of a stream's text."""

    def whole(self, deltas: Sequence[Delta], finished: Finished) -> Json:
        """The answer in one."""

    def usage_piece(self, finished: Finished) -> Json:
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

    def with_choice(self, choice: Json) -> Json:
        return {**self._frame, "choices": [{"index": 0, **choice}]}

    def usage_piece(self, finished: Finished) -> Json:
        return {**self._frame, "choices": [], "usage": usage(finished)}


class CompletionFormat(_Answer):
    """Answers of /v1/completions."""

    def __init__(
        self, request_id: str, model: str, text: TextModel | None, logprobs: int | None
    ) -> None:
        super().__init__(f"cmpl-{request_id}", "text_completion", model)
        self._text = text
        self._logprobs = logprobs
        self._offset = 0  # characters before the next token

    def opening(self) -> Json | None:
        return None

    def piece(self, delta: Delta) -> Json:
        return self._choice(delta.text, self._logprobs_of([delta]), None)

    def last_piece(self, finished: Finished) -> Json:
        return self._choice("", None, finish_reason(finished.reason))

    def whole(self, deltas: Sequence[Delta], finished: Finished) -> Json:
        text = "".join(delta.text for delta in deltas)
        answer = self._choice(text, self._logprobs_of(deltas), finish_reason(finished.reason))
        return {**answer, "usage": usage(finished)}

    def _choice(self, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return self.with_choice({"text": text, "logprobs": logprobs, "finish_reason": reason})

    def _logprobs_of(self, deltas: Sequence[Delta]) -> Json | None:
        if self._logprobs is None or self._text is None:
            return None
        tokens: list[str] = []
        offsets: list[int] = []
        values: list[float] = []
        for delta in deltas:
            for token_id, value in zip(delta.token_ids, delta.logprobs, strict=True):
                token = self._text.token_bytes(token_id).decode(errors="replace")
                tokens.append(token)
                values.append(value)
                offsets.append(self._offset)
                self._offset += len(token)
        top = [{t: v} for t, v in zip(tokens, values, strict=True)] if self._logprobs else None
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": top,
            "text_offset": offsets,
        }


class ChatFormat(_Answer):
    """Answers of /v1/chat/completions."""

    def __init__(
        self, request_id: str, model: str, text: TextModel | None, logprobs: bool, streamed: bool
    ) -> None:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        super().__init__(f"chatcmpl-{request_id}", kind, model)
        self._text = text
        self._logprobs = logprobs

    def opening(self) -> Json | None:
        return self._delta({"role": "assistant", "content": ""}, None, None)

    def piece(self, delta: Delta) -> Json:
        return self._delta({"content": delta.text}, self._logprobs_of([delta]), None)

    def last_piece(self, finished: Finished) -> Json:
        return self._delta({}, None, finish_reason(finished.reason))

    def whole(self, deltas: Sequence[Delta], finished: Finished) -> Json:
        text = "".join(delta.text for delta in deltas)
        choice: Json = {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs_of(deltas),
            "finish_reason": finish_reason(finished.reason),
        }
        return {**self.with_choice(choice), "usage": usage(finished)}

    def _delta(self, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
        return self.with_choice({"delta": delta, "logprobs": logprobs, "finish_reason": reason})

    def _logprobs_of(self, deltas: Sequence[Delta]) -> Json | None:
        if not self._logprobs or self._text is None:
            return None
        content: list[Json] = []
        for delta in deltas:
            for token_id, value in zip(delta.token_ids, delta.logprobs, strict=True):
                raw = self._text.token_bytes(token_id)
                content.append(
                    {
                        "token": raw.decode(errors="replace"),
                        "logprob": value,
                        "bytes": list(raw),
                        "top_logprobs": [],
                    }
                )
        return {"content": content, "refusal": None}


def finish_reason(reason: Reason) -> str:
    """OpenAI's word for a good end."""
    return "length" if reason == common_pb2.REASON_LENGTH else "stop"


def usage(finished: Finished) -> Json:
    """How many tokens went in and came out."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
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
