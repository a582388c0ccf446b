"""`python -m orchestrator.literature [FILE]`: write the page, or print it."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.literature.page import page, sections


def main(arguments: list[str]) -> None:
    text = page(sections())
    if arguments:
        Path(arguments[0]).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
