"""Writes spec/rules.md, every rule with the vectors that break it; `--check` only compares.

The rules are those of section 9 of SPEC.md, word by word, and the vectors those of index.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPEC, TABLE = HERE.parent / "SPEC.md", HERE.parent / "rules.md"
HEAD = """\
# Rules, and the vectors that break them

This page is generated: `python spec/vectors/rules.py` writes it, `--check` compares. Do not edit
it. The rules and their order are those of section 9 of `SPEC.md`, which is normative. The vectors
are files in `vectors/invalid/` (a name stands for `NAME.safetensors`, or for a folder `NAME` where
the vector is a set), and `NAME.expected.json` says what is wrong with each.
"""
OPERATIONS = """\
## Operations

Codes of operations on checkpoints. Read without a checkpoint, these files are valid (and so are
those whose names begin with `sd306-lean`); `expected.json` has the checkpoint to which they are to
be applied, or from which they are to be reverted. There is no vector for `SD504`: it would have to
hold a work of 2^36 bytes.
"""
NONE = {"SD504"}


def rules() -> dict[str, str]:
    """The rules: code and text."""
    section = SPEC.read_text("utf-8").split("## 9. Rules")[1].split("### 9.1")[0]
    found = dict(re.findall(r"^\| `(SD\d{3})` \| (.*) \|$", section, re.MULTILINE))
    sentences = section[section.index("Codes of operations") :].replace("\n", " ")
    found |= dict(re.findall(r"`(SD5\d\d)` ((?:wrong|the|not) [^,.]+)", sentences))
    budget = re.search(r"[^.]*`(SD504)`[^.]*\.", sentences)
    return found | ({budget[1]: budget[0].strip()} if budget else {})


def vectors() -> dict[str, list[str]]:
    """The names of the invalid vectors of each rule."""
    index = json.loads((HERE / "index.json").read_text("utf-8"))
    found: dict[str, list[str]] = {}
    for path in sorted(index):
        if path.startswith("invalid/") and path.endswith(".expected.json"):
            name = path.removeprefix("invalid/").removesuffix(".expected.json")
            rule = json.loads((HERE / path).read_text("utf-8"))["rule"]
            found.setdefault(rule, []).append(name)
    return {rule: sorted(names) for rule, names in found.items()}


def page() -> str:
    """The text of rules.md."""
    known, names = rules(), vectors()
    if missing := known.keys() - names.keys() - NONE:
        raise ValueError(f"rules without a vector: {sorted(missing)}")
    if unknown := names.keys() - known.keys():
        raise ValueError(f"vectors of no rule: {sorted(unknown)}")

    def row(code: str) -> str:
        listed = ", ".join(f"`{name}`" for name in names.get(code, [])) or "none"
        return f"| `{code}` | {known[code]} | {listed} |\n"

    lines = "| code | rule | vectors |\n|---|---|---|\n"
    of_files = [code for code in known if not code.startswith("SD5")]
    of_operations = [code for code in known if code.startswith("SD5")]
    total = sum(map(len, names.values()))
    count = f"\n{len(known)} codes, {total} vectors.\n\n"
    first = HEAD + count + lines + "".join(map(row, of_files))
    return first + "\n" + OPERATIONS + "\n" + lines + "".join(map(row, sorted(of_operations)))


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        TABLE.write_text(page(), "utf-8")
        return 0
    same = TABLE.read_text("utf-8") == page()
    print("rules.md is up to date" if same else "rules.md differs: python spec/vectors/rules.py")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
