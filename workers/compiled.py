"""Has Python load some modules as machine code where that was made of these very sources.

What is compiled is what takes the processor's time of a router and of a simulation, and little
else: the policy, the way of requests and tokens through the router, simulated workers, and the
times that they ask for. Its sources are typed strictly, so mypyc can do without most of what an
interpreter looks up. They stay the only ones: what `python -m workers.compile` makes is kept in the
user's cache under a name made from their contents, so after any change, or where nothing was
compiled, all of it is interpreted and decides the same. It is one library, so that modules call
each other without Python in between; here, because everything that is compiled may import this.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import MutableSequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LIBRARY = "tandem"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
_SHARED = f"{LIBRARY}__mypyc"  # as mypyc calls what all compiled modules share


class Part(NamedTuple):
    """Modules of one package: `only` these, or all `but` those that are hardly ever run, or run
    beside the others, and so not worth the time to compile them."""

    package: str
    but: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()


PARTS = (
    Part("router.core", but=frozenset({"audit", "event_log", "explain"})),
    Part(
        "orchestrator.simulator",
        but=frozenset(
            {"building", "counts", "garbage", "observing", "page", "results", "scenario", "trace"}
        ),
    ),
    Part("router.relay", only=frozenset({"intake", "pacing", "wheel"})),
    Part("workers.http2", but=frozenset({"server"})),
    Part("router.text", only=frozenset({"byte_level", "stop_strings", "stream"})),
    Part(
        "router",
        only=frozenset(
            {
                "answer",
                "dispatcher",
                "grpc_messages",
                "membership",
                "metrics",
                "outbox",
                "replays",
                "report",
                "requests",
                "router_metrics",
                "sampling",
                "sessions",
                "traffic",
                "validation",
                "wire",
            }
        ),
    ),
    Part("orchestrator.bench.router", only=frozenset({"connection"})),
    Part("workers.perf", only=frozenset({"step_times"})),
    Part("workers", only=frozenset({"session", "token_columns"})),
    Part("workers.engine", only=frozenset({"chosen", "commands", "events", "load"})),
    Part("workers.engine.simulated", but=frozenset({"loading"})),
)


def cache_folder() -> Path:
    """Where compiled modules are kept: $TANDEM_COMPILED, which images set to a folder of theirs
    that is only read, or $XDG_CACHE_HOME/tandem/compiled."""
    if folder := os.environ.get("TANDEM_COMPILED"):
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tandem" / "compiled"


def compiled_files(root: Path = ROOT) -> list[Path]:
    """The sources of what is compiled, below `root`."""
    found = []
    for part in PARTS:
        for path in root.joinpath(*part.package.split(".")).glob("*.py"):
            name = path.stem
            if name != "__init__" and name not in part.but and (not part.only or name in part.only):
                found.append(path)
    return sorted(found)


def digest(root: Path = ROOT) -> str:
    """A name for what is compiled of these sources for this Python on this kind of processor."""
    made = sha256(f"{SUFFIX} {platform.machine()}".encode())
    for path in compiled_files(root):
        made.update(f"\0{path.relative_to(root)}\0".encode())
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


def prefer_compiled(package: str, path: MutableSequence[str]) -> None:
    """Have modules of a package loaded from the cache if they are there.

    For the package's `__init__`, with its `__name__` and `__path__`.
    """
    folder = _load()
    if folder is not None:
        path.insert(0, str(folder.joinpath(*package.split("."))))


def is_compiled() -> bool:
    """Whether this process runs machine code."""
    return _SHARED in sys.modules


@functools.cache
def _load() -> Path | None:
    """Load what compiled modules share; the folder that they are in, None if there is none."""
    folder = cache_folder() / digest()
    path = folder / f"{_SHARED}{SUFFIX}"
    spec = importlib.util.spec_from_file_location(_SHARED, path)
    if spec is None or spec.loader is None or not path.is_file():
        return None
    try:
        # The modules look for it under its name.
        sys.modules[_SHARED] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_SHARED])
    except ImportError:
        sys.modules.pop(_SHARED, None)
        return None
    return folder
