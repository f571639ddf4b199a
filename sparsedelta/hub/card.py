"""Model cards: the README of a repository with deltas, of which only a marked block is ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any, Final

from sparsedelta.console import format_bytes
from sparsedelta.errors import CheckpointError
from sparsedelta.hub.heat_map import heat_map
from sparsedelta.hub.manifest_file import ManifestFile
from sparsedelta.operations.info import DeltaInfo

CARD: Final = "README.md"

BEGIN: Final = "<!-- sparsedelta: what stands here is written anew by every push -->"
END: Final = "<!-- sparsedelta: end -->"

_BLOCK: Final = re.compile(
    f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL
)
"""Our block; one that has lost its end is prose, as is what follows it."""

_FRONT: Final = re.compile(
    r"\A\ufeff?\s*---[ \t]*\r?\n(?P<yaml>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_DATASET: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_WORD: Final = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)

_MARKUP: Final = {ord(char): f"&#{ord(char)};" for char in "\\`*_[]|!#~"}
"""What Markdown makes something of."""

_TAGS: Final = ("sparsedelta", "sparse-delta")
_LICENSE_KEYS: Final = ("license", "license_name", "license_link")
_INHERITED: Final = ("pipeline_tag",)
_LONGEST_VALUE: Final = 200
_MOST_LINKS: Final = 200
_SHOWN: Final = 16

_GALLOP: Final = "@misc{gallop,\n  title = {{GaLLoP}},\n  note = {arXiv:2510.19778}\n}\n"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card tells.

    Attributes:
        repo: The repository, ``namespace/name``.
        listed: What ``sparsedelta.json`` says.
        info: The delta; of a chain its last link.
        untouched: Names of the tensors that it leaves alone.
        license: The license that was asked for, or None.
        base_card: The metadata of the base's card.
    """

    repo: str
    listed: ManifestFile
    info: DeltaInfo
    untouched: tuple[str, ...]
    license: str | None
    base_card: Mapping[str, Any]


def renewed_card(old: str | None, facts: CardFacts) -> str:
    """The card of a repository: of an existing one all is kept but the marked block.

    Args:
        old: Its text, or None.
        facts: What it shall tell.

    Raises:
        CheckpointError: The existing card has metadata that cannot be read.
    """
    front, prose = _split(old or "", facts.repo)
    data = _metadata(front, facts)
    block = f"{BEGIN}\n\n{_body(facts)}\n{END}"
    if old is None:
        prose = f"\n# {facts.repo.partition('/')[2]}\n\n{block}\n"
    elif (found := _BLOCK.search(prose)) is not None:
        prose = prose[: found.start()] + block + prose[found.end() :]
    else:
        gap = "\n" if prose.endswith("\n") or not prose else "\n\n"
        prose = f"{prose}{gap}{block}\n"
    if front is not None and _load(front, facts.repo) == data:
        return f"---\n{front}\n---\n{prose}"
    text = import_module("yaml").safe_dump(data, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{prose}"


def license_of(
    old: str | None, facts_license: str | None, base_card: Mapping[str, Any]
) -> str | None:
    """The license that a card will name: asked for, else its own, else that of the base."""
    front, _ = _split(old or "", "the repository")
    own = (_load(front, "the repository") or {}).get("license") if front is not None else None
    found = facts_license or own or base_card.get("license")
    return found if isinstance(found, str) else None


def _split(text: str, repo: str) -> tuple[str | None, str]:
    match = _FRONT.match(text)
    if match is None:
        if text.startswith("---\n"):
            raise _malformed(repo, "its metadata has no end")
        return None, text
    return match["yaml"].replace("\r\n", "\n"), text[match.end() :]


def _malformed(repo: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"the model card of {repo} cannot be renewed: {problem}",
        hint=f"put its {CARD} right on the Hub: metadata stands between two lines of ---",
    )


def _load(front: str, repo: str) -> dict[str, Any]:
    yaml = import_module("yaml")
    try:
        found = yaml.safe_load(front) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers that are none
        problem = " ".join(str(error).split())
        raise _malformed(repo, f"its metadata is no YAML: {problem}") from None
    if not isinstance(found, dict):
        raise _malformed(repo, "its metadata is no mapping")
    return found


def _metadata(front: str | None, facts: CardFacts) -> dict[str, Any]:
    old = {} if front is None else _load(front, facts.repo)
    data = {
        **old,
        "library_name": "sparsedelta",
    }
    base = facts.listed.base.repo
    if base is not None:
        data |= {"base_model": base, "base_model_relation": "adapter"}
    if facts.license is not None:
        for key in _LICENSE_KEYS:
            data.pop(key, None)
        data["license"] = facts.license
    elif "license" not in data:
        data |= {k: facts.base_card[k] for k in _LICENSE_KEYS if facts.base_card.get(k)}
    data |= {k: facts.base_card[k] for k in _INHERITED if k not in data and facts.base_card.get(k)}
    method = facts.listed.deltas[-1].method
    tags = [*_TAGS, *([method] if method else ())]
    data["tags"] = _union(old.get("tags"), tags)
    for key, pattern in (("datasets", _DATASET), ("metrics", _WORD)):
        told = [each.strip() for each in facts.info.metadata.get(key, "").split(",")]
        found = _union(old.get(key), [each for each in told if pattern.fullmatch(each)])
        if found:
            data[key] = found
    return data


def _union(old: object, new: Iterable[str]) -> list[Any]:
    kept = old if isinstance(old, list) else [old] if isinstance(old, str) else []
    return [*kept, *(each for each in dict.fromkeys(new) if each not in kept)]


def _body(facts: CardFacts) -> str:
    sections = [
        _summary(facts),
        _table(facts),
        "### Where the weights change\n",
        heat_map(facts.info.tensors, facts.untouched) + "\n",
        "### How to use it\n",
        *_snippets(facts),
        *_recipe(facts.info.metadata),
        "### Citation\n",
        _citation(facts),
    ]
    return "\n".join(sections)


def _summary(facts: CardFacts) -> str:
    base = facts.listed.base.repo
    what = (
        f"a chain of {len(facts.listed.deltas)} sparse deltas"
        if facts.listed.is_chain
        else ("a sparse delta")
    )
    of = f" to [{base}](/{base})" if base else ""
    return (
        f"This is {what}{of}: the words of its weights that change, and nothing else. Applied to "
        "its base it gives the tuned model, bit for bit, and verifies that it does.\n"
    )


def _table(facts: CardFacts) -> str:
    listed, info = facts.listed, facts.info
    base = listed.base
    commit = f" at commit `{base.commit}`" if base.commit else ""
    last = ", last link" if listed.is_chain else ""
    rows = [
        ("base", f"`{base.repo}`{commit}" if base.repo else "not known"),
        ("base fingerprint", f"`{base.fingerprint}`"),
        ("target fingerprint", f"`{listed.target}`"),
        ("size", format_bytes(sum(delta.size for delta in listed.deltas))),
        (f"words that change{last}", _words(info)),
        (f"tensors{last}", _tensors(info)),
        ("revertible", "yes" if all(d.invertible for d in listed.deltas) else "no"),
        ("format", f"sparsedelta {info.version}, profile {info.profile}"),
    ]
    lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    if listed.is_chain:
        lines += ["| link | from | to | words | size |", "|---|---|---|---|---|"]
        first = max(0, len(listed.deltas) - _MOST_LINKS)
        lines += [
            f"| {number + 1} | `{each.base[:_SHOWN]}` | `{each.target[:_SHOWN]}` | {each.nnz:,} | "
            f"{format_bytes(each.size)} |"
            for number, each in list(enumerate(listed.deltas))[first:]
        ]
        lines += [""]
    return "\n".join(lines)


def _words(info: DeltaInfo) -> str:
    share = "" if info.density is None else f", {info.density:.3%} of the tensors that change"
    carried = f", and {info.carried:,} of whole tensors and rows" if info.carried else ""
    return f"{info.nnz:,}{share}{carried}"


def _tensors(info: DeltaInfo) -> str:
    stay = "" if info.lean else f", {info.untouched} stay as they are"
    return f"{info.touched} change{stay}"


def _snippets(facts: CardFacts) -> list[str]:
    base, repo = facts.listed.base.repo or "BASE", facts.repo
    chain = facts.listed.is_chain
    one = f'"{repo}"'
    more = (
        f"sparsedelta pull {repo} --to {len(facts.listed.deltas)} --onto {base} -o OUT"
        if chain
        else f"sparsedelta revert OUT {repo} -o BACK  # and back again"
    )
    loaded = (
        f'links = [d.path for d in sparsedelta.history("{repo}").deltas]\n'
        f'urls = [f"hf://{repo}/{{path}}" for path in links]\n'
        if chain
        else ""
    )
    deltas = "urls" if chain else f"[{one}]"
    return [
        f"```sh\npip install sparsedelta\nsparsedelta apply {base} {repo} -o OUT\n{more}\n```\n",
        "```python\nfrom transformers import AutoModelForCausalLM\nimport sparsedelta\n\n"
        f"{loaded}model = sparsedelta.from_pretrained(AutoModelForCausalLM, "
        f'"{base}", {deltas})\n```\n',
        "```python\nimport sparsedelta  # some of it, read by ranges\n\n"
        f'with sparsedelta.DeltaReader("hf://{repo}/{facts.listed.deltas[-1].path}") as delta:\n'
        "    print(delta.manifest.nnz, list(delta.records)[:3])\n```\n",
    ]


def _recipe(metadata: Mapping[str, str]) -> list[str]:
    if not metadata:
        return []
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in sorted(metadata.items())]
    return ["### How it was made\n", "| | |", "|---|---|", *rows, ""]


def _cell(text: str) -> str:
    """Text of anyone in a cell of a table: no markup, no line break."""
    short = text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
    plain = "".join(char if char.isprintable() else "�" for char in short)
    return escape(plain, quote=False).translate(_MARKUP)


def _citation(facts: CardFacts) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", facts.repo)
    gallop = _GALLOP if facts.listed.deltas[-1].method == "gallop" else ""
    return (
        "```bibtex\n"
        f"@misc{{{name},\n"
        f"  title = {{{facts.repo}: a sparse delta}},\n"
        f"  howpublished = {{\\url{{https://huggingface.co/{facts.repo}}}}},\n"
        f"  note = {{target fingerprint {facts.listed.target[:_SHOWN]}, made with sparsedelta}}\n"
        f"}}\n{gallop}```\n"
    )
