"""Flags of `tandem bench engine`: what is taken, and how a bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.bench.engine.settings import MEASUREMENTS, Settings, checked_settings
from orchestrator.errors import UsageError


def _settings(folder: Path, **given: str) -> Settings:
    (folder / "config.json").write_text("{}", encoding="utf-8")
    flags = {"against": "transformers,vllm", "batch": "1", "draft_tokens": "0", "only": ""}
    return checked_settings(
        model=folder,
        isl=128,
        osl=64,
        rounds=5,
        quick=given.pop("quick", "") == "yes",
        vllm_python=None,
        **(flags | given),
    )


def test_lists_are_taken_in_order_without_repetition(tmp_path: Path) -> None:
    settings = _settings(tmp_path, batch="8, 1,8", draft_tokens="3,0", only="mixed,prefix")
    assert settings.batches == (8, 1)
    assert settings.draft_tokens == (3, 0)
    assert settings.only == {"mixed", "prefix"}
    assert settings.wants("mixed")
    assert not settings.wants("pair")


def test_without_only_everything_is_measured(tmp_path: Path) -> None:
    assert _settings(tmp_path).only == set(MEASUREMENTS)


def test_no_peer_may_be_asked_for(tmp_path: Path) -> None:
    assert _settings(tmp_path, against="").against == ()


def test_quick_makes_one_round_of_short_answers(tmp_path: Path) -> None:
    settings = _settings(tmp_path, quick="yes")
    assert settings.rounds == 1
    assert settings.osl < 64


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        ({"against": "vlm"}, "--against: unknown name 'vlm'", "did you mean 'vllm'?"),
        ({"only": "x"}, "--only: unknown name 'x'", f"one of {', '.join(MEASUREMENTS)}"),
        ({"batch": "8,x"}, "--batch: 'x' is no whole number from 1 to 1024", ""),
        ({"batch": "0"}, "--batch: '0' is no whole number from 1 to 1024", ""),
        ({"batch": " ,"}, "--batch: give at least one number", ""),
        ({"draft_tokens": "8"}, "--draft-tokens: '8' is no whole number from 0 to 7", ""),
        ({"draft_tokens": "-1"}, "--draft-tokens: '-1' is no whole number from 0 to 7", ""),
    ],
)
def test_a_bad_flag_is_named(
    tmp_path: Path, flags: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as told:
        _settings(tmp_path, **flags)
    assert (told.value.message, told.value.hint) == (message, hint)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--model .*: no config\.json there"):
        checked_settings(
            model=tmp_path / "none",
            against="",
            batch="1",
            isl=1,
            osl=2,
            draft_tokens="0",
            only="",
            rounds=1,
            quick=False,
            vllm_python=None,
        )
