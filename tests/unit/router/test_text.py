"""Text from tokens in any cut, stop strings that never leak, and templates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from router.text.chat_template import ChatMessage, ChatTemplate, ChatTemplateError
from router.text.general import GeneralDecoder
from router.text.stop_strings import StopStrings
from router.text.text_model import (
    ModelFilesError,
    load_generation_defaults,
    load_model_limits,
    load_text_model,
)
from tests.unit.router.tiny_model import (
    EOS_ID,
    MAX_MODEL_TOKENS,
    VOCAB_SIZE,
    byte_level_tokenizer,
    write_tiny_model,
)

BYTE_LEVEL = byte_level_tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def sentence_piece_like() -> Tokenizer:
    """Words with a leading underscore, and bytes for everything else."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in ("▁the", "▁fox", "x", "▁", "é"):
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


SENTENCE_PIECE = sentence_piece_like()


def cuts(ids: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    """`ids` in pieces of these sizes, the rest in one."""
    start = 0
    for size in sizes:
        yield ids[start : start + size]
        start += size
    yield ids[start:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


SIZES = st.lists(st.integers(0, 4), max_size=20)


@given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40), sizes=SIZES)
def test_byte_level_text_is_the_same_however_its_tokens_are_cut(
    folder: Path, ids: list[int], sizes: list[int]
) -> None:
    model = load_text_model(folder)
    assert model is not None
    stream = model.stream((), frozenset())
    text = "".join(stream.feed(piece).text for piece in cuts(ids, sizes)) + stream.flush()[0]
    assert text == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@given(text=TEXTS, sizes=SIZES)
def test_other_tokenizers_give_whole_characters_however_their_tokens_are_cut(
    text: str, sizes: list[int]
) -> None:
    ids = SENTENCE_PIECE.encode(text).ids
    decoder = GeneralDecoder(SENTENCE_PIECE)
    shown = [decoder.feed(piece) for piece in cuts(ids, sizes)]
    assert "".join(shown) + decoder.flush() == SENTENCE_PIECE.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)


def test_a_character_of_several_tokens_comes_when_it_is_complete(folder: Path) -> None:
    model = load_text_model(folder)
    assert model is not None
    ids = BYTE_LEVEL.encode("語").ids
    assert len(ids) == 3
    stream = model.stream((), frozenset())
    assert [stream.feed([token]).text for token in ids] == ["", "", "語"]
    stream = model.stream((), frozenset())
    stream.feed(ids[:2])
    assert stream.flush() == ("\ufffd", False)


def test_special_and_ending_tokens_are_hidden(folder: Path) -> None:
    model = load_text_model(folder)
    assert model is not None
    ids = BYTE_LEVEL.encode("fox dog").ids
    assert model.stream((), frozenset()).feed([0, *ids, EOS_ID]).text == "fox dog"
    shorter = BYTE_LEVEL.decode(ids[:-1])
    assert model.stream((), frozenset({ids[-1]})).feed(ids).text == shorter


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=SIZES,
)
def test_text_ends_before_the_first_stop_string_and_nothing_of_it_leaks(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    matcher = StopStrings(stops)
    shown, stopped = "", False
    for piece in cuts(list(text), sizes):  # type: ignore[arg-type]
        for character in piece:
            new, stopped = matcher.feed(str(character))
            shown += new
            if stopped:
                break
        if stopped:
            break
    if not stopped:
        shown += matcher.flush()
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stopped == bool(found)
    if not found:
        assert shown == text
    assert not any(stop in shown for stop in stops)


def test_the_token_that_completes_a_stop_string_is_the_last_however_tokens_are_cut(
    folder: Path,
) -> None:
    model = load_text_model(folder)
    assert model is not None
    ids = BYTE_LEVEL.encode("The quick fox jumps over").ids
    whole = model.stream(("fox",), frozenset()).feed(ids)
    assert (whole.text, whole.stopped) == ("The quick ", True)
    assert "fox" in BYTE_LEVEL.decode(ids[: whole.used_tokens])
    stream = model.stream(("fox",), frozenset())
    for count, token in enumerate(ids, start=1):
        if stream.feed([token]).stopped:
            assert count == whole.used_tokens
            break


def test_a_possible_stop_string_is_held_back_and_released_at_the_end() -> None:
    matcher = StopStrings(["\n\nUser:"])
    assert matcher.feed("Hello\n\nUs") == ("Hello", False)
    assert matcher.feed("ual") == ("\n\nUsual", False)
    assert matcher.feed("\n") == ("", False)
    assert matcher.flush() == "\n"


def test_the_files_of_a_checkpoint_are_read(folder: Path) -> None:
    defaults = load_generation_defaults(folder)
    assert defaults.eos_token_ids == {EOS_ID}
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (1.0, 1.0, 0)
    limits = load_model_limits(folder)
    assert (limits.max_model_tokens, limits.vocab_size) == (MAX_MODEL_TOKENS, VOCAB_SIZE)
    model = load_text_model(folder)
    assert model is not None
    assert model.template is not None
    messages = [ChatMessage(role="user", content="hi")]
    assert model.template.render(messages) == (
        "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_checkpoint_without_tokenizer_has_no_text_and_a_broken_one_is_named(
    tmp_path: Path,
) -> None:
    assert load_text_model(tmp_path) is None
    assert load_generation_defaults(tmp_path).eos_token_ids == frozenset()
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert load_generation_defaults(tmp_path).eos_token_ids == {5}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelFilesError, match="generation_config"):
        load_generation_defaults(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFilesError, match="tokenizer"):
        load_text_model(tmp_path)


def test_a_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content | tojson }}")
    model = load_text_model(tmp_path)
    assert model is not None
    assert model.template is not None
    assert model.template.render([ChatMessage(role="user", content="é")]) == '"é"'
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelFilesError, match="chat template"):
        load_text_model(tmp_path)


def test_several_templates_have_a_default(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    model = load_text_model(tmp_path)
    assert model is not None
    assert model.template is not None
    assert model.template.render([]) == "d"


def test_a_template_runs_in_a_sandbox_and_may_refuse() -> None:
    messages = [ChatMessage(role="user", content="x")]
    for source in (
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}",
        "{{ messages[5].content.x }}",
    ):
        with pytest.raises(ChatTemplateError):
            ChatTemplate(source, {}).render(messages)
    marked = ChatTemplate("{% generation %}{{ bos_token }}{% endgeneration %}", {"bos_token": "B"})
    assert marked.render(messages) == "B"


async def test_long_texts_are_encoded_like_short_ones(folder: Path) -> None:
    model = load_text_model(folder)
    assert model is not None
    text = "the quick fox " * 200
    assert await model.encode(text, add_special_tokens=True) == BYTE_LEVEL.encode(text).ids
