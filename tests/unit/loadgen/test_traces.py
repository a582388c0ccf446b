"""Traces of every format, cut, filtered, hurried and scaled."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadError
from loadgen.traces.reading import Format, read_trace
from loadgen.traces.request import TraceRequest
from loadgen.traces.shaping import Cut, at_rate, cut, scaled, sped_up

DATA = Path(__file__).parents[2] / "data"
AZURE, MOONCAKE = DATA / "azure_2023_conv_300.csv", DATA / "mooncake_conversation_200.jsonl"

_REQUESTS = st.lists(
    st.builds(
        TraceRequest,
        st.floats(0.0, 100.0),
        st.integers(1, 2000),
        st.integers(1, 500),
        st.lists(st.integers(0, 50), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=30,
).map(lambda requests: sorted(requests, key=lambda one: one.at_s))


def write(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_text(text)
    return file


def test_mooncake_lines_keep_their_hash_ids_and_class(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '{"timestamp": 2000, "input_length": 700, "output_length": 3, "hash_ids": [4, 9]}\n\n'
        '{"timestamp": 500, "input_length": 9, "output_length": 1, "class": "batch"}\n'
        '{"timestamp": 5, "input_length": 9, "output_length": 0}\n',
    )
    assert read_trace(file) == [
        TraceRequest(0.0, 9, 1, class_name="batch"),
        TraceRequest(1.5, 700, 3, (4, 9)),
    ]


def test_azure_of_2023_and_of_2024_differ_only_in_their_zone(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    old = write(tmp_path, head + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,1,2\n")
    requests = read_trace(old)
    assert [one.prompt_tokens for one in requests] == [374, 1]
    assert requests[1].at_s == pytest.approx(3.31941)
    new = write(
        tmp_path,
        head + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,7,8\n",
    )
    assert [one.at_s for one in read_trace(new)] == [0.0, pytest.approx(0.99007)]


def test_burstgpt_conversations_are_sessions_and_failures_are_left_out(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n5,,2,GPT-4,5,6,11,API log\n7,c1,2,GPT-4,5,7,12,Conversation log\n"
        "9,,2,GPT-4,5,0,5,API log\n",
    )
    assert read_trace(file) == [TraceRequest(0.0, 5, 6), TraceRequest(2.0, 5, 7, session="c1")]


def test_aibrix_lines_bring_prompts_and_sessions(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '{"timestamp": 19, "requests": [{"prompt": "Tell me", "prompt_length": 2, '
        '"output_length": 5, "session_id": 0}, {"prompt": "And so on", "prompt_length": null, '
        '"output_length": null, "session_id": null}]}\n',
    )
    first, second = read_trace(file, answer_tokens=64)
    assert first == TraceRequest(0.0, 2, 5, session="0", text="Tell me")
    assert (second.text, second.answer_tokens, second.session) == ("And so on", 64, "")
    assert second.prompt_tokens == 3  # about a quarter of its characters
    with pytest.raises(LoadError, match="line 1: output_length is null"):
        read_trace(file)


@pytest.mark.parametrize(
    ("text", "form", "says"),
    [
        ("a,b\n1,2\n", "auto", "neither JSON lines nor columns"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,x\n", "auto", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,2,3\n", "auto", "line 2"),
        ('{"timestamp": 1, "input_length": 1}\n', "auto", "line 1"),
        ('{"timestamp": 1, "requests": 7}\n', "auto", "line 1"),
        ("not json\n", "mooncake", "line 1"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "auto", "no request"),
        ("", "auto", "is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_line(
    tmp_path: Path, text: str, form: Format, says: str
) -> None:
    with pytest.raises(LoadError, match=says):
        read_trace(write(tmp_path, text), form)


def test_reading_stops_at_the_moment_from_which_nothing_is_wanted(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    file = write(tmp_path, head + "100,1,1\n103,2,1\n111,3,1\nwhat nobody reads\n")
    assert [one.prompt_tokens for one in read_trace(file, to_s=10.0)] == [1, 2]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_real_traces_are_read_in_order_from_zero() -> None:
    for path, count in ((AZURE, 300), (MOONCAKE, 200)):
        requests = read_trace(path)
        times = [one.at_s for one in requests]
        assert len(requests) == count
        assert times == sorted(times)
        assert times[0] == 0.0
    assert len(read_trace(AZURE, limit=7)) == 7


@given(_REQUESTS, st.floats(0.1, 10.0))
def test_hurrying_changes_moments_and_nothing_else(
    requests: list[TraceRequest], factor: float
) -> None:
    for before, after in zip(requests, sped_up(requests, factor), strict=True):
        assert after.at_s == pytest.approx(before.at_s / factor)
        assert after.hash_ids == before.hash_ids
        assert after.prompt_tokens == before.prompt_tokens


@given(_REQUESTS, st.integers(1, 4), st.integers(0, 9))
def test_whole_factors_repeat_every_request_so_often(
    requests: list[TraceRequest], factor: int, seed: int
) -> None:
    more = scaled(requests, factor, seed)
    assert len(more) == factor * len(requests)
    assert [one.at_s for one in more] == sorted(one.at_s for one in more)
    assert more[-1].at_s <= requests[-1].at_s
    lengths = sorted((one.prompt_tokens, one.answer_tokens) for one in requests * factor)
    assert sorted((one.prompt_tokens, one.answer_tokens) for one in more) == lengths


@given(_REQUESTS)
def test_copies_share_prefixes_among_themselves_and_not_with_the_original(
    requests: list[TraceRequest],
) -> None:
    names = {name for one in requests for name in one.hash_ids}
    copies = [one for one in scaled(requests, 2, 0) if one.hash_ids]
    foreign = [one for one in copies if not set(one.hash_ids) <= names]
    assert len(foreign) * 2 == len(copies)
    shifts = {min(one.hash_ids) // (1 << 32) for one in foreign}
    assert shifts <= {1}


def test_fractions_thin_a_trace_to_about_so_many() -> None:
    requests = [TraceRequest(float(at), 1, 1) for at in range(4000)]
    assert len(scaled(requests, 0.25, 3)) == pytest.approx(1000, rel=0.1)
    assert len(scaled(requests, 1.5, 3)) == pytest.approx(6000, rel=0.05)
    assert scaled(requests, 0.25, 3) == scaled(requests, 0.25, 3)


@given(_REQUESTS, st.floats(0.0, 60.0), st.floats(0.0, 60.0), st.integers(1, 900))
def test_a_cut_keeps_what_is_within_its_bounds(
    requests: list[TraceRequest], from_s: float, span_s: float, longest: int
) -> None:
    bounds = Cut(from_s, from_s + span_s, max_isl=longest)
    inside = [
        one
        for one in requests
        if from_s <= one.at_s <= from_s + span_s and one.prompt_tokens <= longest
    ]
    if not inside:
        with pytest.raises(LoadError, match="no request"):
            cut(requests, bounds)
        return
    kept = cut(requests, bounds)
    assert [one.prompt_tokens for one in kept] == [one.prompt_tokens for one in inside]
    assert all(0.0 <= one.at_s <= span_s + 1e-9 for one in kept)


def test_a_new_rate_keeps_the_order_and_begins_at_zero() -> None:
    requests = read_trace(AZURE)
    hurried = at_rate(requests, 50.0, seed=1)
    assert [one.prompt_tokens for one in hurried] == [one.prompt_tokens for one in requests]
    assert hurried[0].at_s == 0.0
    assert len(hurried) / hurried[-1].at_s == pytest.approx(50.0, rel=0.2)
