"""The manifest of `data/`: where each shipped file comes from, and whether it is still the file that was shipped.

    python -m minids.recipes.manifest            # compares data/ with data/manifest.json
    python -m minids.recipes.manifest --write    # records the sizes and hashes of the files as they are now

`data/manifest.json` is a list of entries. People write `path` (a file, or a folder with all that is in it), `what`,
`command`, `commit` (the one that added the files), `minutes` (of the run that made them), `license`, `source` and `note`;
what is not known or does not apply is null. `files` is written by `--write`: the size and the SHA-256 of each file.
README files and the manifest itself are not listed.
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
    """{name below `data`: its size and hash} of the file `path`, or of all files in the folder `path`."""
    start = data / path
    found = [start] if start.is_file() else sorted(p for p in start.rglob("*") if p.is_file() and p.name not in NOT_LISTED)
    return {p.relative_to(data).as_posix(): {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
            for p in found}


def problems(data: Path = DATA) -> list[str]:
    """One sentence for each file that is missing, has changed, or is not listed; an empty list if there is none."""
    listed = {}
    for entry in json.loads((data / "manifest.json").read_text(encoding="utf-8")):
        listed |= entry["files"]
    there = files(data)
    found = [f"{name} is listed and missing: `git checkout -- data` brings it back" for name in listed if name not in there]
    found += [f"{name} differs from the file that was shipped: expected {listed[name]['bytes']} bytes with SHA-256 "
              f"{listed[name]['sha256'][:12]}..., found {now['bytes']} bytes with {now['sha256'][:12]}..."
              for name, now in there.items() if name in listed and now != listed[name]]
    return found + [f"{name} is not listed: add an entry to manifest.json, then run with --write" for name in there if name not in listed]


def write(data: Path = DATA) -> None:
    """Record the files of each entry as they are now."""
    entries = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    for entry in entries:
        entry["files"] = files(data, entry["path"])
    part = data / "manifest.json.part"
    part.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, data / "manifest.json")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minids.recipes.manifest", description="Compare data/ with its manifest.")
    parser.add_argument("--write", action="store_true", help="record sizes and hashes as they are now, then compare")
    arguments = parser.parse_args(argv)
    if arguments.write:
        write()
    found = problems()
    print("\n".join(found) if found else f"all {len(files(DATA))} files of data/ are as listed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
