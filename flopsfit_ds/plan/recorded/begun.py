"""A sweep that an earlier version of this package began: with which data it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from flopsfit_ds.data.corpus import Corpus, former_corpus
from flopsfit_ds.plan.family import num_token_ids
from flopsfit_ds.spec import SweepSpec


class _Identified(Protocol):
    @property
    def run_id(self) -> str: ...


_Run = TypeVar("_Run", bound=_Identified)


def as_begun(
    spec: SweepSpec,
    corpus: Corpus,
    base: Path,
    folder: Path,
    planned: list[_Run],
    runs_on: Callable[[Corpus], list[_Run]],
) -> tuple[Corpus, list[_Run], list[str]]:
    """The data and the runs of a sweep: as an earlier version saw them where it began the sweep and saw them right.

    Args:
        spec: What the user wants.
        corpus: The data as it is seen now.
        base: The spec's folder.
        folder: The sweep's folder.
        planned: The runs on that data.
        runs_on: The same runs on other data.

    Returns:
        Data, runs, and warnings where runs of the folder were trained on other ids than meant, or none is of this plan.
    """
    if not (folder / "runs").is_dir():
        return corpus, planned, []
    former = former_corpus(corpus, spec.data, base, num_token_ids(spec))
    if former is None:
        return corpus, planned, []
    once = runs_on(former.corpus)
    begun = sum((folder / "runs" / run.run_id).is_dir() for run in once)
    if not begun:
        return corpus, planned, _strangers(folder, planned)
    if former.fault is None:
        return former.corpus, once, []
    warning = (
        f"{folder}: {begun} runs were trained on other ids than meant ({former.fault}); they are no longer trusted, "
        "and are trained anew"
    )
    return corpus, planned, [warning]


def _strangers(folder: Path, planned: list[_Run]) -> list[str]:
    """What to say where a folder holds runs, and none of the plan's.

    An earlier version knew texts by their paths from the spec's folder: where the spec moved, it cannot be seen whether
    the runs are of the same data.
    """
    runs = {entry.name for entry in (folder / "runs").iterdir() if entry.is_dir()}
    if not runs or runs & {run.run_id for run in planned}:
        return []
    return [
        f"{folder} holds {len(runs)} runs, and none is of this plan: all points are trained anew. Where an earlier "
        "version began it, and the spec was moved since, put the spec back where it was to go on with them"
    ]
