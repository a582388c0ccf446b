"""Compiles the kernels once for a machine, keeps them in the user's cache, and loads them.

Exists so that nobody has to ship binaries for every processor: what a C++ compiler makes for the
machine at hand is kept under a name that changes with the sources, the compiler and the processor.
Without a compiler the model computes with PyTorch's own operations, which gives the same tokens.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCES = ("attention.cpp", "layers.cpp", "mamba.cpp", "pages.cpp", "step.cpp")
_HEADERS = ("kernels.h", "vector.h")
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-w",
)
_PATIENCE_S = 300.0
_LOG = logging.getLogger(__name__)


class BuildFailed(Exception):
    """The kernels cannot be compiled here; the message is for people."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/tandem/kernels."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tandem" / "kernels"


def load(cache: Path | None = None) -> ctypes.CDLL | None:
    """The compiled kernels, made first if need be; None, with a line in the log, if that fails.

    Args:
        cache: where they are kept; None for `cache_folder()`.
    """
    try:
        return ctypes.CDLL(str(built(cache_folder() if cache is None else cache)))
    except (BuildFailed, OSError) as error:
        _LOG.warning("CPU kernels are not used, decoding is slower: %s", error)
        return None


def built(cache: Path) -> Path:
    """The file of the compiled kernels in `cache`.

    Raises:
        BuildFailed: there is no compiler, or it does not accept the sources.
        OSError: the cache cannot be written.
    """
    found = (path for name in _COMPILERS if (path := shutil.which(name)))
    compiler = next(found, None)
    if compiler is None:
        raise BuildFailed(f"no C++ compiler found; install one of {', '.join(_COMPILERS)}")
    folder = Path(__file__).parent
    library = cache / f"kernels-{_digest(folder, compiler)}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Others see all of it or nothing, also when two workers start at once or one is killed.
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            _compile(folder, compiler, Path(partial)).replace(library)
    return library


def _digest(folder: Path, compiler: str) -> str:
    """A name for what this compiler makes of these sources on this processor."""
    digest = hashlib.sha256("\0".join([*_flags(), _processor(), _version(compiler)]).encode())
    for name in (*_SOURCES, *_HEADERS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _flags() -> tuple[str, ...]:
    # Compilers prefer half vectors for fear of lower clocks; the kernels' vectors are whole ones.
    wide = ("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()
    return _FLAGS + wide


def _processor() -> str:
    """What `-march=native` looks at, where the system tells it; the architecture at least."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = ("model name", "cpu family", "model\t", "flags", "Features")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(names)}))


def _version(compiler: str) -> str:
    return _finish(_start([compiler, "--version"]))


def _compile(folder: Path, compiler: str, scratch: Path) -> Path:
    """Compile the sources side by side and link them; returns the library in `scratch`."""
    objects = [scratch / f"{name}.o" for name in _SOURCES]
    running = [
        _start([compiler, *_flags(), "-c", str(folder / name), "-o", str(made)])
        for name, made in zip(_SOURCES, objects, strict=True)
    ]
    for process in running:
        _finish(process)
    library = scratch / "kernels.so"
    # torch has loaded an OpenMP library of this name already: threads are shared with it.
    _finish(_start([compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(library)]))
    return library


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - a compiler on the path, our own sources
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _finish(process: subprocess.Popen[str]) -> str:
    """What a process wrote. Raises BuildFailed when it failed or took too long."""
    try:
        output, _ = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise BuildFailed(f"the compiler took more than {_PATIENCE_S:.0f} s") from None
    if process.returncode:
        lines = [line for line in output.splitlines() if line]
        raise BuildFailed(lines[0] if lines else f"the compiler ended with {process.returncode}")
    return output
