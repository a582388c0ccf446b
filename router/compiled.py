"""Has Python load the core as machine code where that was made of these very sources.

The core is the part of a router that takes the processor's time, and the policy of a simulation;
its sources are typed strictly, so mypyc can do without most of what an interpreter looks up. They
stay the only ones: what `python -m router.compile` makes is kept in the user's cache under a name
made from their contents, so after any change, or where nothing was compiled, the core is
interpreted and decides the same.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path

PACKAGE = "router.core"
SOURCES = Path(__file__).parent / "core"
LIBRARY = "tandem_core"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
_MODULE = f"{LIBRARY}__mypyc"  # as mypyc calls what all compiled modules share
# Hardly ever run, or run beside the core: not worth the time to compile them.
_INTERPRETED = frozenset({"__init__.py", "audit.py", "event_log.py", "explain.py"})


def cache_folder() -> Path:
    """Where compiled cores are kept: $XDG_CACHE_HOME/tandem/core."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tandem" / "core"


def core_files(sources: Path = SOURCES) -> list[Path]:
    """The modules that are compiled."""
    return sorted(path for path in sources.glob("*.py") if path.name not in _INTERPRETED)


def digest(sources: Path = SOURCES) -> str:
    """A name for what is compiled of these sources for this Python on this kind of processor."""
    made = sha256(f"{SUFFIX} {platform.machine()}".encode())
    for path in core_files(sources):
        made.update(f"\0{path.name}\0".encode())
        made.update(path.read_bytes())
    return made.hexdigest()[:16]


def prefer_compiled() -> bool:
    """Have the core's modules loaded from the cache if they are there; whether they are.

    Must be called before any of them is imported.
    """
    folder = cache_folder() / digest()
    path = folder / f"{_MODULE}{SUFFIX}"
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None or not path.is_file():
        return False
    try:
        # The modules look for what they share under its name.
        sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_MODULE])
    except ImportError:
        sys.modules.pop(_MODULE, None)
        return False
    importlib.import_module(PACKAGE).__path__.insert(0, str(folder))
    return True


def is_compiled() -> bool:
    """Whether this process runs the compiled core."""
    return _MODULE in sys.modules
