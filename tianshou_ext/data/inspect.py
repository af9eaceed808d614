"""Look through a buffer file for what would ruin training, before it is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from json import dumps
from math import isfinite
from pathlib import Path
from typing import Any

from tianshou_ext.data.blocks import BufferFile
from tianshou_ext.data.defects import Defect, known_defects
from tianshou_ext.data.findings import SEVERITIES, Finding, Severity
from tianshou_ext.data.inspect_actions import look_at_actions
from tianshou_ext.data.inspect_episodes import look_at_flags, look_at_rewards
from tianshou_ext.data.inspect_observations import look_at_observations
from tianshou_ext.data.report import draw, new_figure, report_lines
from tianshou_ext.errors import InputError

__all__ = ["Inspection", "inspect"]


@dataclass
class Inspection:
    """What is in a buffer file; printing it gives the report."""

    file: Path
    figures: dict[str, Any] = field(default_factory=dict)
    """All numbers, as JSON can hold them."""
    findings: list[Finding] = field(default_factory=list)
    """Worst first."""
    as_json: bool = False

    @property
    def exit_code(self) -> int:
        """1 if something would ruin training, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def __str__(self) -> str:
        if not self.as_json:
            found = [str(finding) for finding in self.findings] or ["nothing wrong found"]
            return "\n".join([*report_lines(self.file, self.figures), "", *found])
        report = {
            "file": str(self.file),
            **self.figures,
            "findings": [vars(finding) for finding in self.findings],
            "exit_code": self.exit_code,
        }
        return dumps(_finite(report), allow_nan=False)


def inspect(
    file: Path,
    /,
    *,
    plot: Path | None = None,
    json: bool = False,
    frames: int = 20_000,
    progress: bool = True,
) -> Inspection:
    """Look through a buffer file: what is in it, what is wrong with it, what to do.

    The exit code is 1 if something would ruin training, 2 if the file cannot be read, else 0.
    Rows are numbered from the oldest one.

    :param file: a buffer file of tianshou_ext or Tianshou.
    :param plot: make a picture of returns, lengths and actions here, for example plot.png.
    :param json: print one JSON object with all numbers.
    :param frames: rows to look at, in evenly spaced runs, where an observation takes more than
        4 kB; 0 for all.
    :param progress: show a progress bar.
    :raises InputError: if the file cannot be read.
    """
    if frames < 0:
        raise InputError(f"expected frames of 0 (all) or more, got {frames}")
    if plot is not None:
        new_figure(plot)  # fails here, not after the file is read
    with BufferFile(file) as source:
        found = Inspection(source.path, as_json=json)
        figures, findings = found.figures, found.findings
        figures |= _head(source)
        if source.rows == 0:
            findings.append(Finding("error", "the buffer is empty", "fill it"))
            return found
        findings += look_at_flags(source, figures)
        findings += look_at_rewards(source, figures)
        actions, of_actions = look_at_actions(source, figures)
        findings += of_actions
        findings += look_at_observations(source, figures, frames, progress)
        findings += [
            _of_defect(defect, _origins(source.provenance, source.path.name))
            for defect in known_defects(_names(source.provenance, source.path.name))
        ]
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        if plot is not None:
            draw(plot, source, actions)
    return found


def _finite(values: Any) -> Any:
    """Return what JSON can hold: NaN and the infinite bounds of a space as text."""
    if isinstance(values, Mapping):
        return {key: _finite(inner) for key, inner in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(inner) for inner in values]
    return str(values) if isinstance(values, float) and not isfinite(values) else values


def _head(source: BufferFile) -> dict[str, Any]:
    return {
        "bytes": source.path.stat().st_size,
        "rows": source.rows,
        "transitions": int(source.transitions.sum()),
        "ordered": source.ordered,
        "stack_num": source.stack_num,
        "stores_obs_next": source.save_obs_next,
        "shared_frames": source.shared_frames,
        "columns": {k: {"shape": list(s), "dtype": d} for k, (s, d) in source.specs.items()},
        "info": {k: {"shape": list(s), "dtype": d} for k, (s, d) in source.info_specs.items()},
        "info_unread": source.unread_info,
        "provenance": source.provenance,
    }


def _of_defect(defect: Defect, origins: list[tuple[str, str]]) -> Finding:
    """Return the finding; a file made from several is repaired if each that has the defect is.

    :param origins: names and converter of each file at the start.
    """
    with_it = [converter for names, converter in origins if defect in known_defects(names)]
    converters = {*with_it} or {converter for _, converter in origins}
    if defect.repaired_by and converters == {defect.repaired_by}:
        return Finding("note", f"known, repaired: {defect.what}", "nothing: it was converted so")
    severity: Severity = "warning" if defect.ruins_training else "note"
    return Finding(severity, f"known: {defect.what}", defect.advice)


def _names(provenance: Mapping[str, Any], file: str) -> str:
    """Return the names a file goes by, those of the files it was made from included."""
    names = [value for value in provenance.values() if isinstance(value, str) and len(value) < 200]
    names += [_names(*parent) for parent in _parents(provenance)]
    return " ".join([*names, file])


def _origins(provenance: Mapping[str, Any], file: str) -> list[tuple[str, str]]:
    """Return names and converter of each file that a file was first made from, or its own."""
    parents = _parents(provenance)
    if not parents:
        return [(_names(provenance, file), str(provenance.get("source")))]
    return [origin for parent in parents for origin in _origins(*parent)]


def _parents(provenance: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Return provenance and name of each file that a file was edited from."""
    made_from = provenance.get("made_from")
    parents = [p for p in made_from if isinstance(p, dict)] if isinstance(made_from, list) else []
    known = [p["provenance"] if isinstance(p.get("provenance"), dict) else {} for p in parents]
    return [(own, str(p.get("file", ""))) for own, p in zip(known, parents, strict=True)]
