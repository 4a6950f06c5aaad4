"""One trunk, many points: runs that are the same up to a decay, of which the longest is trained first.

With a constant rate, a run of fewer tokens is the longest run up to where its own decay begins. It goes on from the
checkpoint that the trunk keeps there, and is what it would be if trained alone: the trunk saves time and is no part of
a run's identity. Where its checkpoint is lost, the run is trained from the start.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, Protocol

from flopsfit_ds.plan.recipe.recipe import Recipe

_NONE = (
    "training.one_trunk: no two runs share a trunk, since each differs in more than its tokens; write "
    "warmup_tokens, and a learning rate and batch that do not follow the tokens"
)


_MOST_NAMED = 3
"""Runs without a trunk that a plan names; one rule makes all of them differ."""


@dataclass(frozen=True)
class Branch:
    """Where a run leaves its trunk.

    Attributes:
        trunk: Run id of the trunk.
        step: Steps that the two have in common.
    """

    trunk: str
    step: int


class Trainable(Protocol):
    """What is looked at of a run."""

    @property
    def run_id(self) -> str:
        """Identity."""
        ...

    @property
    def label(self) -> str:
        """For people."""
        ...

    @property
    def model(self) -> Any:
        """Shape."""
        ...

    @property
    def recipe(self) -> Recipe:
        """With its decays."""
        ...

    @property
    def seed(self) -> int:
        """Of weights and order of data."""
        ...

    @property
    def global_batch_sequences(self) -> int:
        """Sequences a step."""
        ...

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        ...


@dataclass(frozen=True)
class Sharing:
    """Which runs share a trunk.

    Attributes:
        branches: Where each branch leaves its trunk, by run id.
        keep_steps: After which steps each trunk keeps its state, by run id.
        warnings: What the user should know.
    """

    branches: dict[str, Branch]
    keep_steps: dict[str, tuple[int, ...]]
    warnings: tuple[str, ...]


def share_trunks(runs: Sequence[Trainable]) -> Sharing:
    """Let runs that differ in their length alone branch off the longest of them."""
    groups: dict[str, list[Trainable]] = {}
    for run in runs:
        groups.setdefault(_all_but_length(run), []).append(run)
    branches: dict[str, Branch] = {}
    keep_steps: dict[str, tuple[int, ...]] = {}
    for group in groups.values():
        trunk = max(group, key=lambda run: run.num_steps)
        last = trunk.recipe.decays[0][0]
        shorter = [run for run in group if 0 < run.recipe.decays[0][0] <= last and run is not trunk]
        for run in shorter:
            branches[run.run_id] = Branch(trunk.run_id, run.recipe.decays[0][0])
        if shorter:
            keep_steps[trunk.run_id] = tuple(sorted({branches[run.run_id].step for run in shorter}))
    return Sharing(branches, keep_steps, _without_trunk(runs, {*branches, *keep_steps}) if branches else (_NONE,))


def _without_trunk(runs: Sequence[Trainable], sharing: Collection[str]) -> tuple[str, ...]:
    """Which runs share no trunk although others of their model and seed do, and what keeps them from it."""
    shapes = {run.run_id: json.dumps([_shape(run), run.seed], sort_keys=True) for run in runs}
    trunks = {shapes[run.run_id]: run for run in runs if run.run_id in sharing}
    alone = [run for run in runs if run.run_id not in sharing and shapes[run.run_id] in trunks]
    told = [f"{run.label} ({_difference(run, trunks[shapes[run.run_id]])})" for run in alone]
    if not told:
        return ()
    more = f" and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return (
        f"training.one_trunk: {', '.join(told[:_MOST_NAMED])}{more} share none and are trained from the start; "
        "write a global_batch and a learning rate that do not follow the tokens",
    )


def _difference(run: Trainable, other: Trainable) -> str:
    mine, theirs = run.global_batch_sequences, other.global_batch_sequences
    if mine != theirs:
        return f"batches of {mine} sequences, {other.label} has {theirs}"
    mine, theirs = (asdict(replace(each.recipe, decays=())) for each in (run, other))
    differing = [name.replace("_", " ") for name in mine if mine[name] != theirs[name]]
    return f"another {', '.join(differing)} than {other.label}" if differing else "its decay begins too late or at once"


def _shape(run: Trainable) -> Any:
    assert is_dataclass(run.model)
    assert not isinstance(run.model, type)
    return asdict(run.model)


def _all_but_length(run: Trainable) -> str:
    values = [_shape(run), run.global_batch_sequences, run.seed, asdict(replace(run.recipe, decays=()))]
    return json.dumps(values, sort_keys=True)
