"""The `openai` client from PyPI against `tandem up`: what users of other servers already have."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.clusters import Cluster

pytestmark = pytest.mark.e2e

_MODEL = "tandem-tiny"


def _call(cluster: Cluster, method: str, path: str, body: str = "") -> tuple[int, str]:
    """Status and text of a bare HTTP call, for what the client library would not send."""
    connection = http.client.HTTPConnection(cluster.http, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{cluster.http}/v1", api_key="none") as client:
        yield client


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [_MODEL]
    assert client.models.retrieve(_MODEL).id == _MODEL


def test_a_completion_has_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=_MODEL, prompt="In the beginning", max_tokens=16, temperature=0
    )
    assert len(answer.choices[0].text) > 0
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_completion_is_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model=_MODEL, prompt="And the LORD said", max_tokens=24, temperature=0
    )
    stream = client.completions.create(
        model=_MODEL, prompt="And the LORD said", max_tokens=24, temperature=0, stream=True
    )
    parts = [chunk.choices[0].text for chunk in stream]
    assert len(parts) > 1
    assert "".join(parts) == whole.choices[0].text


def test_chat_answers_and_streams_with_usage(client: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "Tell me about lists."}
    ]
    whole = client.chat.completions.create(
        model=_MODEL, messages=messages, max_tokens=24, temperature=0
    )
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    stream = client.chat.completions.create(
        model=_MODEL,
        messages=messages,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    first, second = whole.usage, chunks[-1].usage
    assert first is not None
    assert second is not None
    assert second.total_tokens == first.total_tokens


def test_a_second_turn_reuses_the_state_of_the_first(client: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "Tell me about dictionaries and about sets. " * 8}
    ]
    first = client.chat.completions.create(
        model=_MODEL, messages=messages, max_tokens=16, temperature=0
    )
    messages.append({"role": "assistant", "content": first.choices[0].message.content})
    messages.append({"role": "user", "content": "And about lists?"})
    second = client.chat.completions.create(
        model=_MODEL, messages=messages, max_tokens=16, temperature=0
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached >= first.usage.prompt_tokens - 4  # but for the opening of the answer


def test_the_same_seed_gives_the_same_text_and_another_seed_another(
    client: openai.OpenAI,
) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(
            model=_MODEL, prompt="The", max_tokens=24, temperature=1.0, seed=seed
        )
        return answer.choices[0].text

    assert text(1) == text(1)
    assert text(1) != text(2)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": _MODEL, "prompt": ""}, 400, "prompt"),
        ({"model": "other", "prompt": "x"}, 400, "model"),
        ({"model": _MODEL, "prompt": "x", "temperature": -1}, 400, "temperature"),
        ({"model": _MODEL, "prompt": "x", "top_p": 0}, 400, "top_p"),
        ({"model": _MODEL, "prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"model": _MODEL, "prompt": "word " * 9000, "max_tokens": 1}, 400, "prompt"),
        ({"model": _MODEL, "prompt": [999_999]}, 400, "prompt"),
        ({"model": _MODEL}, 400, "prompt"),
    ],
)
def test_bad_input_gets_the_openai_error_object(
    cluster: Cluster, body: dict[str, object], status: int, param: str
) -> None:
    found, text = _call(cluster, "POST", "/v1/completions", json.dumps(body))
    assert found == status, text
    error = json.loads(text)["error"]
    assert error["param"] == param
    assert error["message"]
    assert "Traceback" not in text


def test_malformed_json_is_a_bad_request(cluster: Cluster) -> None:
    status, text = _call(cluster, "POST", "/v1/completions", "{")
    assert status == 400
    assert "JSON" in json.loads(text)["error"]["message"]


def test_the_cluster_is_healthy_after_all_that(cluster: Cluster) -> None:
    status, _ = _call(cluster, "GET", "/health")
    assert status == 200
