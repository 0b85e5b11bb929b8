"""The manifest of `data/`: where each shipped file comes from, and whether it has changed since.

    python -m minids.recipes.manifest            # compares data/ with data/manifest.json
    python -m minids.recipes.manifest --write    # records the current sizes and hashes of the files

`data/manifest.json` is a list of entries. People write `path` (a file, or a folder with everything
in it), `what`, `command`, `commit` (the one that added the files), `minutes` (of the run that made
them), `license`, `source` and `note`; null means unknown or not applicable. `--write` fills in
`files`: the size and the SHA-256 of each file. README files and the manifest itself are not listed,
and the tables that `make bench-gpu` writes on a reader's machine need not be.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from minids.system.paths import DATA

NOT_LISTED = {"README.md", "manifest.json", ".DS_Store"}
MEASURED_HERE = re.compile(r"records/bench-[a-z0-9-]+\.json")       # may be listed


def size_and_hash(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def files(data: Path, path: str = "") -> dict[str, dict]:
    """{name relative to `data`: size and hash} of the file `path`, or of all files in the folder
    `path`."""
    start = data / path
    paths = [start]
    if not start.is_file():
        paths = sorted(p for p in start.rglob("*") if p.is_file() and p.name not in NOT_LISTED)
    return {p.relative_to(data).as_posix(): size_and_hash(p) for p in paths}


def problems(data: Path = DATA) -> list[str]:
    """One sentence for each file that is missing, has changed, or is not listed."""
    listed, present = {}, files(data)
    for entry in json.loads((data / "manifest.json").read_text(encoding="utf-8")):
        listed |= entry["files"]
    missing = [f"{name} is listed but missing: restore it with `git checkout -- data`"
               for name in listed if name not in present]
    changed = [f"{name} differs from the file that was shipped: expected {listed[name]['bytes']} "
               f"bytes with SHA-256 {listed[name]['sha256'][:12]}..., found {now['bytes']} bytes "
               f"with {now['sha256'][:12]}..."
               for name, now in present.items() if name in listed and now != listed[name]]
    unlisted = [f"{name} is not listed: add an entry to manifest.json, then run with --write"
                for name in present if name not in listed and not MEASURED_HERE.fullmatch(name)]
    return missing + changed + unlisted


def write(data: Path = DATA) -> None:
    """Record the current size and hash of each entry's files."""
    entries = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    for entry in entries:
        entry["files"] = files(data, entry["path"])
    part = data / "manifest.json.part"
    part.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8",
                    newline="\n")
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
    print("\n".join(messages) or f"all {len(files(DATA))} files of data/ are as listed")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
