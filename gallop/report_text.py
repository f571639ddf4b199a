"""The report of a selection as plain text, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gallop.report import SelectionReport, Share

__all__ = ["report_lines"]

_BAR = 40


def report_lines(report: SelectionReport, *, layers: int = 12) -> list[str]:
    """Render a report: counts, kinds, layers, overlap, histogram of the scores.

    Args:
        report: What a selection found.
        layers: Show at most this many layers, those of the highest density.

    Returns:
        Lines without line ends, at most 100 characters wide unless names are long.
    """
    lines = [
        f"chosen       {report.k:,} of {report.eligible:,} ({report.density:.4%}), "
        f"{report.requested:,} were asked for",
        f"threshold    {_threshold(report)}; {report.ties:,} ties, {report.ties_taken:,} taken",
        f"zero weights {report.zeros:,} eligible, {report.zeros_excluded:,} excluded; "
        f"share of the mask {report.zero_share:.2%}"
        + (" if they were not" if report.zeros_excluded else ""),
    ]
    if report.loss is not None:
        seen = "" if report.samples is None else f"{report.samples:,} samples in "
        lines.append(f"gradients    {seen}{report.batches:,} batches, loss {report.loss:.4f}")
    if report.sampling is not None:
        sampling = report.sampling
        lines.append(
            f"sampled      {sampling.size:,} scores: density in [{sampling.density_low:.4%}, "
            f"{sampling.density_high:.4%}] with {sampling.confidence:.0%} confidence"
        )
    lines += ["", *_table("kind", report.by_kind())]
    by_layer = report.by_layer()
    densest = sorted(by_layer, key=lambda name: -by_layer[name].density)[:layers]
    shown = {name: share for name, share in by_layer.items() if name in densest}
    left_out = len(by_layer) - len(shown)
    title = "layer" if not left_out else f"layer ({left_out} less dense ones left out)"
    lines += ["", *_table(title, shown)]
    return [*lines, "", *_overlap(report), "", *_histogram(report.histogram)]


def _threshold(report: SelectionReport) -> str:
    return "one per tensor" if report.threshold is None else f"{report.threshold:.6g}"


def _table(title: str, rows: Mapping[str, Share]) -> list[str]:
    chosen = max(1, sum(share.chosen for share in rows.values()))
    cells = [[title, "tensors", "eligible", "chosen", "of the mask", "density"]] + [
        [
            name,
            f"{share.tensors:,}",
            f"{share.eligible:,}",
            f"{share.chosen:,}",
            f"{share.chosen / chosen:.1%}",
            f"{share.density:.4%}",
        ]
        for name, share in rows.items()
    ]
    return _aligned(cells)


def _overlap(report: SelectionReport) -> list[str]:
    found = report.overlap
    if found is None:
        return ["overlap      not known"]
    rows: list[tuple[str, int | None]] = [
        ("mask and lowest |w|", found.low_weight),
        ("mask and highest |g|", found.high_gradient),
        ("lowest |w| and highest |g|", found.both),
        ("all three", found.all_three),
    ]
    cells = [[f"sets of {found.size:,} entries", "shared", "of each", "Jaccard"]]
    for name, shared in rows:
        if shared is not None:
            jaccard = f"{found.jaccard(shared):.4f}" if name != "all three" else ""
            cells.append([name, f"{shared:,}", f"{shared / found.size:.1%}", jaccard])
    return _aligned(cells)


def _histogram(counts: Mapping[str, int]) -> list[str]:
    most = max(counts.values(), default=1)
    cells = [["score", "entries", ""]]
    for exponent, count in counts.items():
        name = "0, or barred" if exponent == "zero" else f"2^{exponent}"
        cells.append([name, f"{count:,}", "#" * -(-count * _BAR // most)])
    return [line.rstrip() for line in _aligned(cells, left=2)]


def _aligned(cells: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    # The first column to the left, as well as column number ``left``; the others to the right.
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if position in (0, left) else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
