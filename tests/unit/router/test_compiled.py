"""The core as machine code: found for its very sources only, and else everything is interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from router import compile as compiling
from router import compiled

_SHOW = """
import router.core.lifecycle as lifecycle
from router import compiled
print(compiled.is_compiled(), lifecycle.__file__.endswith(".py"))
"""


def _run(*arguments: str, cache: Path) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_any_change_of_the_sources_gives_another_name(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("A = 1\n")
    first = compiled.digest(tmp_path)
    assert compiled.digest(tmp_path) == first
    (tmp_path / "one.py").write_text("A = 2\n")
    second = compiled.digest(tmp_path)
    (tmp_path / "two.py").write_text("")
    assert len({first, second, compiled.digest(tmp_path)}) == 3


def test_where_nothing_was_compiled_or_it_is_broken_the_sources_are_run(tmp_path: Path) -> None:
    assert _run("-c", _SHOW, cache=tmp_path) == "False True\n"
    folder = tmp_path / "tandem" / "core" / compiled.digest()
    folder.mkdir(parents=True)
    for module in ("tandem_core__mypyc", "lifecycle"):
        (folder / f"{module}{compiled.SUFFIX}").write_bytes(b"not machine code")
    assert _run("-c", _SHOW, cache=tmp_path) == "False True\n"


def test_without_a_compiler_the_step_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "_BUILD", "import sys; sys.exit('no gcc here')")
    compiling.main()
    assert "stays interpreted: no gcc here" in capsys.readouterr().out
    assert not list((tmp_path / "tandem" / "core").iterdir())


@pytest.mark.full
def test_machine_code_gives_the_instructions_that_the_sources_give(tmp_path: Path) -> None:
    source = (
        "from tests.unit.router.test_event_log import _recorded\n"
        "from router.compiled import is_compiled\n"
        "print(is_compiled(), *_recorded()[1:], sep='\\n')\n"
    )
    interpreted = _run("-c", source, cache=tmp_path)
    assert "is compiled" in _run("-m", "router.compile", cache=tmp_path)
    machine = _run("-c", source, cache=tmp_path)
    assert (interpreted[:5], machine[:4]) == ("False", "True")
    assert interpreted[5:] == machine[4:]
