"""Fetches and cleans the training text: two Debian packages whose licences allow it.

Exists so that the shipped weights can be made again from public sources: the King James Bible
(public domain, package `bible-kjv-text`, read by the small program in `bible-kjv`) and the
Python manual (PSF licence, package `python3.11-doc`). The packages are downloaded with apt and
unpacked into a cache folder; nothing is installed. SOURCES.md names origins and licences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from workers.training.restructured_text import sections

PACKAGES = ("bible-kjv-text", "bible-kjv", "python3.11-doc")
DEFAULT_CACHE = Path.home() / ".cache" / "tandem" / "corpus"
MANUAL_FOLDERS = ("tutorial", "faq", "howto", "library", "reference", "using", "extending")
# One document in this many is held out for validation.
VALIDATION_EVERY = 50
MINIMUM_CHARACTERS = 120

_BOOK_LIST = (
    "Genesis,Exodus,Leviticus,Numbers,Deuteronomy,Joshua,Judges,Ruth,1 Samuel,2 Samuel,1 Kings,"
    "2 Kings,1 Chronicles,2 Chronicles,Ezra,Nehemiah,Esther,Job,Psalms,Proverbs,Ecclesiastes,"
    "Song of Solomon,Isaiah,Jeremiah,Lamentations,Ezekiel,Daniel,Hosea,Joel,Amos,Obadiah,Jonah,"
    "Micah,Nahum,Habakkuk,Zephaniah,Haggai,Zechariah,Malachi,Matthew,Mark,Luke,John,Acts,Romans,"
    "1 Corinthians,2 Corinthians,Galatians,Ephesians,Philippians,Colossians,1 Thessalonians,"
    "2 Thessalonians,1 Timothy,2 Timothy,Titus,Philemon,Hebrews,James,1 Peter,2 Peter,1 John,"
    "2 John,3 John,Jude,Revelation"
)
BOOKS = _BOOK_LIST.split(",")


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of text with the question a reader might ask to get it."""

    source: Literal["kjv", "python"]
    question: str
    title: str
    text: str

    @property
    def held_out(self) -> bool:
        """True for the documents that only validation may see; stable across runs."""
        digest = hashlib.sha256(f"{self.source}/{self.title}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % VALIDATION_EVERY == 0


def download(cache: Path) -> Path:
    """Fetch and unpack the Debian packages under `cache`; return the unpacked root.

    Raises:
        RuntimeError: apt or dpkg is missing or failed; the message carries what it said.
    """
    root = cache / "unpacked"
    if (root / "usr").is_dir():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    for command in (
        ["apt-get", "download", *PACKAGES],
        *(["sh", "-c", f"dpkg-deb -x {name}_*.deb unpacked"] for name in PACKAGES),
    ):
        try:
            subprocess.run(command, cwd=cache, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise RuntimeError(
                f"{' '.join(command)} failed: {said.strip()}. Run `apt-get update` first; the "
                f"packages {', '.join(PACKAGES)} are in Debian 12."
            ) from error
    return root


def bible_documents(root: Path) -> Iterator[Document]:
    """One document per chapter of the King James Bible, verses as sentences in a row."""
    dump = subprocess.run(
        [
            str((root / "usr/bin/bible").resolve()),
            "-f",
            "-d",
            "bible.data",
            "Genesis1:1-Revelation22:21",
        ],
        cwd=root / "usr/lib",  # it looks for its data below the current folder only
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    verse = re.compile(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.*)$")
    abbreviations: dict[str, str] = {}
    chapters: dict[str, list[str]] = {}
    for line in dump.splitlines():
        match = verse.match(line)
        if match is None:
            continue
        abbreviation, chapter, _, words = match.groups()
        if abbreviation not in abbreviations:
            abbreviations[abbreviation] = BOOKS[len(abbreviations)]
        chapters.setdefault(f"{abbreviations[abbreviation]} {chapter}", []).append(words.strip())
    if len(abbreviations) != len(BOOKS):
        raise RuntimeError(f"{root}/usr/bin/bible gave {len(abbreviations)} of {len(BOOKS)} books")
    for title, verses in chapters.items():
        yield Document("kjv", f"Read me {title}", title, "\n".join(verses))


def manual_documents(root: Path) -> Iterator[Document]:
    """One document per section of the Python manual that has running text."""
    sources = root / "usr/share/doc/python3.11/html/_sources"
    for folder in MANUAL_FOLDERS:
        for path in sorted((sources / folder).rglob("*.rst.txt")):
            for title, text in sections(path.read_text(encoding="utf-8")):
                if len(text) >= MINIMUM_CHARACTERS:
                    yield Document("python", f"Tell me about {title}", title, text)


def load_documents(cache: Path = DEFAULT_CACHE) -> list[Document]:
    """All documents, from the cached JSON lines if they were already made."""
    made = cache / "documents.jsonl"
    if not made.exists():
        root = download(cache)
        documents = [*bible_documents(root), *manual_documents(root)]
        lines = (json.dumps(asdict(document), ensure_ascii=False) for document in documents)
        made.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with made.open(encoding="utf-8") as file:
        return [Document(**json.loads(line)) for line in file]


def main() -> None:
    """Download, clean and describe the corpus."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the text")
    documents = load_documents(parser.parse_args().cache)
    for source in ("kjv", "python"):
        for held_out in (False, True):
            part = [d for d in documents if d.source == source and d.held_out is held_out]
            size = sum(len(d.text.encode()) for d in part)
            split = "validation" if held_out else "train"
            sys.stdout.write(f"{source:7} {split:10} {len(part):5} documents {size:9} bytes\n")


if __name__ == "__main__":
    main()
