"""`python -m workers.compile`: makes machine code of some modules with mypyc, once for all.

A step of setting up, because it takes three minutes. Without mypy or a C compiler it says so and
they stay interpreted, at about a third of the speed; `compiled.py` says which and how they load.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from workers.compiled import LIBRARY, ROOT, cache_folder, compiled_files, digest

_PATIENCE_S = 600.0
_KEPT = 4  # libraries, of several checkouts or versions, some megabytes each
# Run by a process of its own: setuptools and mypyc change directories and global state.
_BUILD = """
import sys
from mypyc.build import mypycify
from setuptools import setup
name, scratch, out, *files = sys.argv[1:]
options = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports",
           "--cache-dir=" + scratch + "/types"]
modules = mypycify([*options, *files], group_name=name, target_dir=scratch + "/c", opt_level="3")
setup(name=name, packages=[], ext_modules=modules, script_args=[
    "--quiet", "build_ext", "--build-lib", out, "--build-temp", scratch + "/o"])
"""


class BuildFailedError(Exception):
    """Nothing can be compiled here; the message is for people."""


def compile_modules(cache: Path) -> Path:
    """The folder of the compiled modules in `cache`, compiled first if it is not there.

    Raises:
        BuildFailedError: mypyc or a C compiler is missing, or does not accept the sources.
        OSError: the cache cannot be written.
    """
    if importlib.util.find_spec("mypyc") is None:
        raise BuildFailedError("mypy is not installed; `pip install mypy[mypyc]` brings mypyc")
    folder = cache / digest()
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Others see all of it or nothing, also when two compile at once or one is killed.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch, "made")
        _build(Path(scratch), made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # nobody else was quicker
                raise
    return folder


def _build(scratch: Path, out: Path) -> None:
    files = [str(path.relative_to(ROOT)) for path in compiled_files()]
    command = [sys.executable, "-c", _BUILD, LIBRARY, str(scratch), str(out), *files]
    try:
        done = subprocess.run(  # noqa: S603 - our own sources
            command,
            cwd=ROOT,
            timeout=_PATIENCE_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailedError(f"compiling took more than {_PATIENCE_S:.0f} s") from None
    if done.returncode:
        lines = done.stdout.splitlines()
        raise BuildFailedError("\n".join(lines[-5:]) or f"mypyc ended with {done.returncode}")


def main() -> None:
    """Compile what the router and the simulator run most, or say why it stays interpreted."""
    parser = argparse.ArgumentParser(prog="python -m workers.compile", description=main.__doc__)
    parser.add_argument("--required", action="store_true", help="fail when it cannot be done")
    required = parser.parse_args().required
    try:
        folder = compile_modules(cache_folder())
    except (BuildFailedError, OSError) as error:
        print(f"the router and the simulator stay interpreted: {error}")  # noqa: T201 - for people
        if required:
            sys.exit(1)
        return
    kept = sorted(folder.parent.iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in kept[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    print(f"the router and the simulator are compiled: {folder}")  # noqa: T201 - for people


if __name__ == "__main__":
    main()
