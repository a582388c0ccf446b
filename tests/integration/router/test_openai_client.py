"""The `openai` client against a real router in front of fake workers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.integration.router.conftest import Running, StartRouter


@pytest.fixture
async def router(start_router: StartRouter) -> Running:
    return await start_router()


@pytest.fixture
async def client(router: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{router.http}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def expected(router: Running, tokens: int) -> str:
    return router.tokenizer.decode([router.script.token(index) for index in range(tokens)])


async def test_it_lists_and_retrieves_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "tandem"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_it_completes(router: Running, client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="The", max_tokens=12, seed=1)
    assert answer.choices[0].text == expected(router, 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


async def test_it_streams_completions(router: Running, client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny", prompt="The", max_tokens=30, stream=True, stop=["never"]
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected(router, 30)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_it_chats_until_a_stop_string(router: Running, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Speak!"}],
        max_completion_tokens=100,
        stop="dog",
    )
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "The lazy ")
    assert answer.choices[0].finish_reason == "stop"


async def test_it_streams_chats_with_usage(router: Running, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be."}, {"role": "user", "content": "Speak!"}],
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected(router, 30)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 30


async def test_it_is_told_what_is_wrong(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(model="tiny", prompt="x", temperature=3)
    assert error.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(model="other", prompt="x")
    assert error.value.code == "model_not_found"


async def test_it_reads_several_choices_with_alternatives(
    router: Running, client: openai.AsyncOpenAI
) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Speak!"}],
        max_completion_tokens=5,
        n=3,
        logprobs=True,
        top_logprobs=2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        response_format={"type": "json_object"},
        extra_body={"min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.message.content == expected(router, 5)
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * 5
    sampling = router.script.prefills[0].item.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.grammar.json_object
