"""Request bodies of the OpenAI API, as far as they are served, in the router's terms.

What would change the answer and is not served is refused by name; what would not change it, such
as `user`, is accepted and ignored; what nobody knows is refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from protos.tandem.v1 import common_pb2
from router.errors import RequestError, refusal
from router.openai_http.forms import Body, ResponseFormat, StructuredOutputs
from router.requests import ClientRequest
from router.sampling import MOST_TOP_LOGPROBS
from router.text.chat_template import ChatMessage, ChatTemplateError
from router.validation import ServedModel

# What OpenAI gives to those who do not say.
_COMPLETION_MAX_TOKENS = 16
_SHOWN_CHARACTERS = 80
# Fields that vLLM has dropped, and where it takes them now.
_MOVED = {
    f"guided_{form}": f'structured_outputs: {{"{form}": ..}}'
    for form in ("json", "regex", "choice", "grammar")
}


class StreamOptions(Body):
    """How a stream is to be written."""

    include_usage: bool = False
    include_obfuscation: object = None


class _GenerationBody(Body):
    """What both endpoints take."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    # As in vLLM.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    structured_outputs: StructuredOutputs | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    # Our own.
    priority_class: str = ""
    deadline_ms: int = 0
    # Without effect on the answer.
    user: object = None
    metadata: object = None
    store: object = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None

    @property
    def stops(self) -> Sequence[str]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def streamed(self) -> bool:
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _request(
        self,
        prompt: str | Sequence[int],
        prompt_field: str,
        max_tokens: int | None,
        default_max_tokens: int | None,
        logprobs: bool,
        top_logprobs: int,
        add_special_tokens: bool,
    ) -> ClientRequest:
        field, grammar = self._grammar()
        return ClientRequest(
            prompt=prompt,
            prompt_field=prompt_field,
            model=self.model,
            max_tokens=max_tokens,
            default_max_tokens=default_max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,  # -1 is vLLM's way to keep every token
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stops,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            grammar=grammar,
            grammar_field=field,
            deadline_ms=self.deadline_ms,
            priority_class=self.priority_class,
            add_special_tokens=add_special_tokens,
        )

    def _grammar(self) -> tuple[str, common_pb2.Grammar | None]:
        """The form that the answer must have, and the field that says so."""
        asked = {
            "response_format": self.response_format,
            "structured_outputs": self.structured_outputs,
        }
        grammars = {
            field: grammar
            for field, form in asked.items()
            if form is not None and (grammar := form.grammar()) is not None
        }
        if len(grammars) > 1:
            raise refusal("structured_outputs", "response_format is given as well; leave one out")
        return next(iter(grammars.items()), ("", None))


class CompletionBody(_GenerationBody):
    """POST /v1/completions."""

    prompt: str | list[object]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    echo: Literal[False] | None = None
    best_of: int | None = None
    suffix: Literal[""] | None = None

    def client_request(self, model: ServedModel) -> ClientRequest:
        """What is asked for; raises RequestError."""
        if self.best_of not in (None, self.choices):
            raise refusal("best_of", f"{self.best_of} is not served; leave it out, or ask for n")
        return self._request(
            prompt=self._one_prompt(),
            prompt_field="prompt",
            max_tokens=self.max_tokens,
            default_max_tokens=_COMPLETION_MAX_TOKENS,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs or 0,
            add_special_tokens=True,
        )

    def _one_prompt(self) -> str | list[int]:
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if len(prompt) == 1 and isinstance(prompt[0], str):
            return prompt[0]
        if len(prompt) == 1 and isinstance(prompt[0], list):
            prompt = prompt[0]
        elif prompt and isinstance(prompt[0], (str, list)):
            raise refusal("prompt", f"{len(prompt)} prompts given; send one in each request")
        token_ids = [token for token in prompt if type(token) is int]
        if len(token_ids) != len(prompt):
            raise refusal("prompt", "must be a string or a list of token ids")
        return token_ids


class TextPart(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn."""

    role: str
    content: str | list[TextPart]
    name: object = None

    def plain(self) -> ChatMessage:
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return ChatMessage(role=self.role, content=content)


class ChatBody(_GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[list[object], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: object = None

    def client_request(self, model: ServedModel) -> ClientRequest:
        """What is asked for; raises RequestError."""
        if model.text is None or model.text.template is None:
            raise refusal(
                "messages", f"model {model.name!r} has no chat template; use /v1/completions"
            )
        try:
            prompt = model.text.template.render([message.plain() for message in self.messages])
        except ChatTemplateError as error:
            raise refusal("messages", str(error)) from error
        asked = self.max_completion_tokens
        return self._request(
            prompt=prompt,
            prompt_field="messages",
            max_tokens=self.max_tokens if asked is None else asked,
            default_max_tokens=None,
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
            add_special_tokens=False,  # the template writes them
        )


_BodyT = TypeVar("_BodyT", bound=Body)


def parse_body(kind: type[_BodyT], raw: bytes) -> _BodyT:
    """A body from JSON; raises RequestError that names the first thing wrong with it."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        raise RequestError(
            common_pb2.REASON_INVALID_ARGUMENT, f"the body is not JSON: {problem['msg']}"
        )
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = [_MOVED[field]] if field in _MOVED else _near(field, kind)
        raise refusal(field, "is not known" + (f"; did you mean {near[0]}?" if near else ""))
    if problem["type"] == "missing":
        raise refusal(field, "is required")
    given = repr(problem["input"])
    if len(given) > _SHOWN_CHARACTERS:
        given = given[:_SHOWN_CHARACTERS] + "..."
    raise refusal(field or "body", f"{given} is not served: {problem['msg']}")


def _near(field: str, kind: type[Body]) -> list[str]:
    return difflib.get_close_matches(field, kind.model_fields, n=1)
