"""One trunk, many points: runs that are the same up to a decay, of which the longest is trained first.

With a constant rate, a run of fewer tokens is the longest run up to where its own decay begins. It goes on from the
checkpoint that the trunk keeps there, and is what it would be if trained alone: the trunk saves time and is no part of
a run's identity. Where its checkpoint is lost, the run is trained from the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, Protocol

from flopsfit_ds.plan.recipe.recipe import Recipe

_NONE = (
    "training.one_trunk: no two runs share a trunk, since each differs in more than its tokens; write "
    "warmup_tokens, and a learning rate and batch that do not follow the tokens"
)


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
    return Sharing(branches, keep_steps, () if branches else (_NONE,))


def _all_but_length(run: Trainable) -> str:
    assert is_dataclass(run.model)
    assert not isinstance(run.model, type)
    values = [asdict(run.model), run.global_batch_sequences, run.seed, asdict(replace(run.recipe, decays=()))]
    return json.dumps(values, sort_keys=True)
