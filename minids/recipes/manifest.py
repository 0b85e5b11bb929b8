"""The manifest of `data/`: where each shipped file comes from, and whether it has changed since.

    python -m minids.recipes.manifest            # compares data/ with data/manifest.json
    python -m minids.recipes.manifest --write    # records the current sizes and hashes

`data/manifest.json` is a list of entries. People write `path` (a file, or a folder with all that is
in it), `what`, `command`, `commit` (the one that added the files), `minutes` (of the run that made
them), `license`, `source` and `note`; what is not known or does not apply is null. `--write` writes
`files`: the size and the SHA-256 of each file. README files and the manifest itself are not listed.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "data"
NOT_LISTED = {"README.md", "manifest.json", ".DS_Store"}


def files(data: Path, path: str = "") -> dict[str, dict]:
    """{name below `data`: its size and hash} of a file, or of all files in a folder, `path`."""
    start = data / path
    if start.is_file():
        paths = [start]
    else:
        paths = sorted(p for p in start.rglob("*") if p.is_file() and p.name not in NOT_LISTED)
    return {p.relative_to(data).as_posix(): {"bytes": p.stat().st_size,
                                             "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
            for p in paths}


def problems(data: Path = DATA) -> list[str]:
    """One sentence for each file that is missing, has changed, or is not listed."""
    listed = {}
    for entry in json.loads((data / "manifest.json").read_text(encoding="utf-8")):
        listed |= entry["files"]
    present = files(data)
    missing = [f"{name} is listed and missing: `git checkout -- data` brings it back"
               for name in listed if name not in present]
    changed = [f"{name} differs from the file that was shipped: expected {listed[name]['bytes']} "
               f"bytes with SHA-256 {listed[name]['sha256'][:12]}..., found {now['bytes']} bytes "
               f"with {now['sha256'][:12]}..."
               for name, now in present.items() if name in listed and now != listed[name]]
    unlisted = [f"{name} is not listed: add an entry to manifest.json, then run with --write"
                for name in present if name not in listed]
    return missing + changed + unlisted


def write(data: Path = DATA) -> None:
    """Record the files of each entry as they are now."""
    entries = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    for entry in entries:
        entry["files"] = files(data, entry["path"])
    part = data / "manifest.json.part"
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, data / "manifest.json")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minids.recipes.manifest",
                                     description="Compare data/ with its manifest.")
    parser.add_argument("--write", action="store_true",
                        help="record the current sizes and hashes, then compare")
    arguments = parser.parse_args(argv)
    if arguments.write:
        write()
    messages = problems()
    count = len(files(DATA))
    print("\n".join(messages) if messages else f"all {count} files of data/ are as listed")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
