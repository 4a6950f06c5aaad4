"""Where the numbers of a report come from: versions, seeds, machines, hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from flopsfit_ds import __version__
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import RunRecord, SweepFolder
from flopsfit_ds.report.findings import Findings
from flopsfit_ds.spec.fit_options import count_in_words


def facts(folder: SweepFolder | None, findings: Findings, plan: SweepPlan | None) -> list[tuple[str, str]]:
    """Name and value of each fact, in the order in which they are shown."""
    records = findings.records
    found = [("report written by", f"flopsfit-ds {__version__}")]
    if records:
        last = datetime.fromtimestamp(max(r.finished_at for r in records), timezone.utc)
        found += [
            ("last run finished", last.strftime("%Y-%m-%d %H:%M:%S UTC")),
            ("git commit", _distinct(records, lambda r: r.git_commit or "none: started outside a repository")),
            ("machine", _distinct(records, lambda r: f"{r.host} ({r.device})")),
            ("precision", _distinct(records, lambda r: r.precision)),
            ("seeds of the runs", _distinct(records, lambda r: str(r.seed))),
            ("peak learning rates", _distinct(records, lambda r: f"{r.learning_rate:.4g}")),
        ]
        names = sorted({name for record in records for name in record.versions})
        found += [(name, _distinct(records, lambda r, n=name: r.versions.get(n, "unknown"))) for name in names]
    if plan is not None:
        found.append(("data", f"{plan.corpus.source}, fingerprint {plan.corpus.fingerprint}"))
        found += [("data", note) for note in plan.corpus.notes]
        if plan.spec.fit.heldout is not None:
            found.append(("loss", f"that on the held-out set {plan.spec.fit.heldout}"))
    return [*found, *_fit_facts(findings), *(() if folder is None else _hashes(folder))]


def _distinct(records: Sequence[RunRecord], value: Callable[[RunRecord], str]) -> str:
    return ", ".join(dict.fromkeys(value(record) for record in records))


def _fit_facts(findings: Findings) -> list[tuple[str, str]]:
    found = [("N counts", count_in_words(findings.parameter_count))]
    if findings.fit is None:
        return found
    audit = findings.fit.audit
    delta = "" if audit.huber_delta is None else f", delta {audit.huber_delta:g}"
    resamples = "none" if audit.bootstrap is None else f"{audit.bootstrap_samples} by {audit.bootstrap}"
    return [
        *found,
        ("compute", audit.compute_rule),
        ("weights", "alike" if audit.largest_weight is None else f"1 to {audit.largest_weight:.3g}, by errors of loss"),
        ("fit's loss function", f"{audit.loss}{delta}"),
        ("optimiser", audit.optimiser),
        ("resamples", f"{resamples}, seed {audit.bootstrap_seed}"),
        ("points, SHA-256", audit.points_sha256),
        ("numpy and python of the fit", f"{audit.numpy_version}, {audit.python_version}"),
    ]


def _hashes(folder: SweepFolder) -> Iterable[tuple[str, str]]:
    for path in (folder.spec, folder.plan, folder.results):
        digest = _sha256(path)
        if digest is not None:
            yield f"{path.name}, SHA-256", digest


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def spec_text(folder: SweepFolder) -> str | None:
    """The spec as it was last used; None where the folder holds none."""
    try:
        return folder.spec.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
