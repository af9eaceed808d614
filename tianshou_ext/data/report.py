"""What ``inspect`` shows: lines of text with bars, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.blocks import BufferFile, flat_rows
from tianshou_ext.errors import InputError
from tianshou_ext.files import atomic_write

__all__ = ["draw", "new_figure", "report_lines"]

Array = np.ndarray[Any, Any]


def report_lines(file: Path, f: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that describe ``file``, of the figures ``inspect`` collects."""
    layout = (
        "one frame a row"
        if f["stack_num"] > 1 and not f["stores_obs_next"]
        else (
            "obs and obs_next share frames"
            if f["shared_frames"]
            else "with obs_next"
            if f["stores_obs_next"]
            else "without obs_next"
        )
    )
    yield (
        f"{file}: {f['rows']:,} rows, {f['transitions']:,} transitions, "
        + (f"{f['episodes']:,} episodes, " if f.get("episodes") is not None else "")
        + f"{f['bytes'] / 1e6:,.1f} MB"
    )
    columns = ", ".join(
        f"{path} {tuple(spec['shape'])} {spec['dtype']}" for path, spec in f["columns"].items()
    )
    yield f"layout      {columns}; {layout}, stack_num {f['stack_num']}"
    info = [f"{path} {tuple(spec['shape'])} {spec['dtype']}" for path, spec in f["info"].items()]
    info += [f"{path} (no numbers)" for path in f["info_unread"]]
    if info:
        yield f"info        {', '.join(info)}"
    yield from _report_provenance(f["provenance"])
    if "terminated" in f:
        yield (
            f"ends        {f['terminated']:,} terminated, {f['truncated']:,} truncated, "
            f"{f['both_flags']:,} of them both, {f['unfinished']:,} unfinished"
        )
    for name in ("return", "length", "reward"):
        if f.get(name, {}).get("count"):
            yield from _report_summary(name, f[name])
    for path, numbers in f.get("action", {}).items():
        yield from _report_action(path, numbers)
    for path, numbers in f.get("observation", {}).items():
        if "min" in numbers and not path.startswith("obs_next"):
            low, high = np.min(numbers["min"]), np.max(numbers["max"])
            yield f"{path:<11} {low:g} to {high:g}"
    if "looked_at" in f:
        yield (
            f"looked at   {f['looked_at']:,} of {f['rows']:,} rows' observations: "
            f"{100 * f['repeats']['share']:.3g} % of neighbours equal, "
            f"{f['jumps']['count']:,} jumps, obs_next "
            + (
                f"differs from the next row in {f['obs_next']['differ']:,} of "
                f"{f['obs_next']['compared']:,}"
                if f["obs_next"]["compared"]
                else "not compared with the next row "
                + ("(not stored)" if f["ordered"] else "(shuffled)")
            )
        )


def _report_provenance(provenance: Mapping[str, Any]) -> Iterator[str]:
    if not provenance:
        yield "provenance  none recorded (a foreign file)"
        return
    plain = {k: v for k, v in provenance.items() if isinstance(v, str | int | float)}
    yield "provenance  " + ", ".join(f"{k} {str(v)[:100]}" for k, v in plain.items())
    for note in provenance.get("notes", []):
        yield f"  noted     {note}"
    for parent in provenance.get("made_from", []):
        yield f"  made from {parent.get('file')}"


def _report_summary(name: str, s: Mapping[str, Any]) -> Iterator[str]:
    quantiles = "  ".join(f"{q} % {value:.6g}" for q, value in s["quantiles"].items())
    yield (
        f"{name:<11} mean {s['mean']:.6g}  std {s['std']:.6g}  min {s['min']:.6g}  "
        f"{quantiles}  max {s['max']:.6g}"
    )
    counts, edges = s["histogram"]["counts"], s["histogram"]["edges"]
    if len(counts) < 2:
        return
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        yield f"  {low:>10.5g} to {high:>10.5g} {_bar(count / max(counts))} {count:,}"


def _bar(share: float, width: int = 30) -> str:
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(width + 1)


def _report_action(path: str, numbers: Mapping[str, Any]) -> Iterator[str]:
    if "counts" in numbers:
        counts = numbers["counts"]
        total = sum(counts.values())
        yield f"{path:<11} {len(counts)} different actions"
        for action, count in list(counts.items())[:20]:
            share = f"{100 * count / total:.1f} %"
            yield f"  {action:>24} {_bar(count / max(counts.values()))} {share}"
        if len(counts) > 20:
            yield f"  {len(counts) - 20} more"
    elif "at_bounds" in numbers:
        yield f"{path:<11} per dimension: range, share at -1 or 1, share beyond"
        columns = (numbers[key] for key in ("min", "max", "at_bounds", "outside"))
        for k, (low, high, at, beyond) in enumerate(zip(*columns, strict=True)):
            yield f"  {k:>10} {low:.4g} to {high:.4g}  {100 * at:.1f} %  {100 * beyond:.1f} %"
    elif "min" in numbers:
        yield f"{path:<11} {np.min(numbers['min']):g} to {np.max(numbers['max']):g}"


def new_figure(path: Path) -> Any:
    """Return an empty figure that can be written to ``path``.

    :raises InputError: if matplotlib is not installed, or writes no files with this ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "expected the package matplotlib for a picture, found none; "
            'pip install "tianshou_ext[cli]"'
        ) from error
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    if _ending(path) not in figure.canvas.get_supported_filetypes():
        raise InputError(
            f"expected a name for a picture that ends in .png, .pdf or .svg, got {path}"
        )
    return figure


def _ending(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def draw(path: Path, source: BufferFile, actions: Mapping[str, Array]) -> None:
    """Draw returns, lengths and the actions taken.

    :param actions: a sample of them by path, (K, ...).
    :raises InputError: if the picture cannot be written.
    """
    figure = new_figure(path)
    figure.suptitle(source.path.name, parse_math=False)
    axes = figure.subplots(1, 3)
    for axis, name, values in zip(
        axes, ("return", "length"), (source.returns(), source.lengths()), strict=False
    ):
        if not source.ordered:
            axis.set(title=f"no {name}s: shuffled transitions", xticks=[], yticks=[])
            continue
        values = values[np.isfinite(values)]
        axis.hist(values, bins=min(50, max(10, len(values) // 4)))
        axis.set(title=f"{name} of {len(values):,} episodes", xlabel=name, ylabel="episodes")
        _count_in_whole_numbers(axis.yaxis, *([axis.xaxis] if name == "length" else []))
    name, taken = next(iter(actions.items()))
    if taken.ndim == 1 and taken.dtype.kind in "iu":
        axes[2].bar(*np.unique(taken, return_counts=True))
        axes[2].set(title=f"{name} of {len(taken):,} rows", xlabel="action", ylabel="rows")
        _count_in_whole_numbers(axes[2].xaxis, axes[2].yaxis)
    else:
        flat = flat_rows(taken).astype(np.float64)
        flat = flat[np.isfinite(flat).all(1)]
        edges = np.linspace(flat.min(), flat.max() + 1e-9, 51) if flat.size else np.arange(51)
        shares = np.stack([np.histogram(column, edges)[0] for column in flat.T]) / max(len(flat), 1)
        extent = (edges[0], edges[-1], len(shares) - 0.5, -0.5)
        image = axes[2].imshow(shares, aspect="auto", extent=extent, interpolation="nearest")
        axes[2].set(title=f"{name} of {len(flat):,} rows", xlabel="action", ylabel="dimension")
        axes[2].xaxis.get_major_locator().set_params(nbins=5)  # more run into one another
        _count_in_whole_numbers(axes[2].yaxis)
        figure.colorbar(image, ax=axes[2], label="share of rows")
    try:
        atomic_write(path, lambda partial: figure.savefig(partial, dpi=120, format=_ending(path)))
    except OSError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"expected to write a picture to {path}, but that failed ({reason}); make room or "
            "choose another folder"
        ) from error


def _count_in_whole_numbers(*axes: Any) -> None:
    for axis in axes:
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
