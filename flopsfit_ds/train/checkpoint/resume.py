"""Where an attempt begins: at the start, or at the newest whole checkpoint, converted to another layout if need be.

Rank 0 reads and verifies the files, once, and tells the others through the rendezvous store, before the engine is
built: DeepSpeed has to know beforehand that it will load a universal checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import cannot_write
from flopsfit_ds.base.trust import Trust
from flopsfit_ds.plan.recipe.trunks import Branch
from flopsfit_ds.records import RunFolder
from flopsfit_ds.train.checkpoint.files import (
    TAG,
    Pulse,
    SavedState,
    clear_leftovers,
    describe,
    discard,
    newest_checkpoint,
    read_manifest,
    refuse,
    shortage,
)
from flopsfit_ds.train.checkpoint.tensors import tensors_only
from flopsfit_ds.train.checkpoint.universal import convert, has_share_of_every_group, inside, load_universal
from flopsfit_ds.train.order import WorkerOrder, WorkerTask
from flopsfit_ds.train.session import Session, is_out_of_memory
from flopsfit_ds.train.versions import versions

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]
_log = logging.getLogger(__name__)
_KEY = "resume"
_ANYBODY = Trust(shared=True)
_DECISION_TIMEOUT = timedelta(hours=2)
"""For rank 0 to convert the checkpoint of another layout, while the others wait and it says that it lives. Chosen."""
_CANNOT_CONVERT = (AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""How DeepSpeed says that it does not know a checkpoint's form; what lacks memory or a disk is tried again."""
_CONVERSION_FACTOR = 2  # shards of every parameter, and then the whole of it
_REASON_CHARACTERS = 200
_NO_SHARE = "a rank has no share of a group of few small parameters, and DeepSpeed's loader demands one"


@dataclass(frozen=True)
class ResumePoint:
    """Where an attempt begins.

    Attributes:
        saved: The checkpoint to load; None at the start.
        universal: Folder of its universal form, removed once it is loaded; empty where `saved` is loaded as it is.
        refused: Why the newest checkpoint is not used; None where there is none, or where it is.
    """

    saved: SavedState | None = None
    universal: str = ""
    refused: str | None = None


def trust_of(task: WorkerTask) -> Trust:
    """What the checkpoints of a task's run must show.

    Raises:
        SweepFolderError: The sweep's key cannot be read or made.
    """
    if task.sweep_folder is None:
        return Trust(shared=task.trust_shared_folder)
    return Trust.of_sweep(Path(task.sweep_folder), task.trust_shared_folder)


def agree_on_resume_point(
    order: WorkerOrder,
    run_id: str,
    store: Store,
    pulse: Pulse,
    trust: Trust = _ANYBODY,
    branch: Branch | None = None,
    convertible: bool = True,
) -> ResumePoint:
    """Let rank 0 choose, and convert if need be, before any engine is built; the other ranks wait for its word.

    Args:
        order: Which rank this is, and the layout.
        run_id: Of the run.
        store: The attempt's rendezvous.
        pulse: Told that the work goes on.
        trust: What a checkpoint must show.
        branch: Where the run leaves a trunk, which kept its state there: a start for a run without a checkpoint.
        convertible: Whether its optimiser's states are known to DeepSpeed's conversion, as only AdamW's are.

    Raises:
        SweepFolderError: There is no room for a conversion, this rank does not see the files, or somebody else could
            have written them.
        RecordError: What rank 0 says is no checkpoint of this run.
    """
    if order.rank == 0:
        point = _choose(order, run_id, pulse, trust, branch, convertible)
        store.set(_KEY, json.dumps(asdict(point), default=str))
        return point
    store.wait([_KEY], _DECISION_TIMEOUT)
    fields = json.loads(store.get(_KEY))
    if fields["saved"] is not None:
        fields["saved"] = SavedState(**{**fields["saved"], "path": Path(fields["saved"]["path"])})
    point = ResumePoint(**fields)
    if point.saved is not None and not point.saved.path.is_dir():
        raise SweepFolderError(
            f"{point.saved.path}: rank 0 goes on from here and rank {order.rank} does not see it; "
            "put output_root on a file system that all nodes share"
        )
    if point.saved is not None:
        _check_word(point, order, run_id, trust, branch)
    return point


def _kept_by_trunk(order: WorkerOrder, branch: Branch) -> Path:
    return RunFolder(Path(order.run_folder).parent / branch.trunk).kept(branch.step)


def _check_word(point: ResumePoint, order: WorkerOrder, run_id: str, trust: Trust, branch: Branch | None) -> None:
    """See that what another process names is a checkpoint of this run, by what this rank sees itself.

    Raises:
        RecordError: It is not.
        SweepFolderError: Somebody else could have written it.
    """
    assert point.saved is not None
    folder = Path(order.run_folder) / "checkpoint"
    places = [Path(each) for each in (point.saved.path, point.universal) if each]
    if branch is not None and places[0].parent == _kept_by_trunk(order, branch):
        run_id, own = branch.trunk, places[1:]
    else:
        own = places
    if any(place.parent != folder for place in own):
        raise RecordError(f"{places}: not below {folder}; another process of this run named it")
    for place in places:
        trust.check([place, *place.rglob("*")])
    read_manifest(point.saved.path, run_id, trust)


def _choose(
    order: WorkerOrder, run_id: str, pulse: Pulse, trust: Trust, branch: Branch | None, convertible: bool
) -> ResumePoint:
    folder = Path(order.run_folder) / "checkpoint"
    folder.mkdir(exist_ok=True)
    clear_leftovers(folder)
    passed_over: list[str] = []
    saved = newest_checkpoint(folder, run_id, pulse, trust, versions(), passed_over.append)
    if saved is None and branch is not None:
        kept = _kept_by_trunk(order, branch)
        saved = newest_checkpoint(kept, branch.trunk, pulse, trust, versions(), passed_over.append)
        if saved is None:
            passed_over.append(f"{kept}: no whole state is kept there")
    refused = _why_not_the_newest(saved, passed_over)
    if saved is None:
        return ResumePoint(refused=refused)
    same = (saved.zero_stage, saved.world_size) == (order.zero_stage, order.world_size)
    if same or saved.zero_stage == order.zero_stage == 0:  # at stage 0 every rank has all states
        return ResumePoint(saved, refused=refused)
    if not convertible:
        return _refuse(saved, order, "only AdamW's states are converted from one layout to another")
    universal = folder / ".universal.tmp"
    needed = _CONVERSION_FACTOR * sum(path.stat().st_size for path in saved.path.rglob("*"))
    if lacking := shortage(folder, needed):
        raise SweepFolderError(
            f"{saved.path} cannot be converted to another layout: {lacking}; free space or change output_root"
        )
    try:
        convert(saved, universal, pulse)
    except OSError as error:
        raise cannot_write(universal, error) from error
    except _CANNOT_CONVERT as error:
        _log.warning("DeepSpeed's conversion of %s failed", saved.path, exc_info=True)
        clear_leftovers(folder)
        return _refuse(saved, order, f"{type(error).__name__}: {error}")
    return ResumePoint(saved, universal=str(universal), refused=refused)


def _why_not_the_newest(saved: SavedState | None, passed_over: Sequence[str]) -> str | None:
    if not passed_over:
        return None
    reason = f"begins at step {0 if saved is None else saved.step}: {'; '.join(passed_over)}"
    _log.warning("%s", reason)
    return reason


def _refuse(saved: SavedState, order: WorkerOrder, reason: str) -> ResumePoint:
    """Start over, and say why."""
    refused = (
        f"begins at step 0: the checkpoint of step {saved.step}, written by ZeRO-{saved.zero_stage} on "
        f"{saved.world_size} ranks, cannot be read by ZeRO-{order.zero_stage} on {order.world_size}: {reason}"
    )
    if order.rank == 0:
        _log.warning("%s", refused)
    return ResumePoint(refused=refused)


def _load_as_it_is(session: Session, saved: SavedState) -> None:
    """Let DeepSpeed load a checkpoint; one of other versions that it cannot load is passed over from now on.

    Half of it may be loaded by then: this attempt ends, and the next begins with what can be loaded.
    """
    try:
        with inside(saved.path.parent), tensors_only():
            session.engine.load_checkpoint(saved.path.name, tag=TAG)
    except Exception as error:
        here = versions()
        if saved.program != here and not (is_out_of_memory(error) or isinstance(error, OSError)):
            reason = f"{type(error).__name__}: {str(error)[:_REASON_CHARACTERS]}"
            refuse(saved, here, f"by {describe(saved.program)}; {describe(here)} cannot load it: {reason}")
        raise


def load(session: Session, order: WorkerOrder, point: ResumePoint) -> ResumePoint:
    """Load what was agreed on; a collective.

    Returns:
        `point`, or the start, where the engine turns out not to be able to load it.
    """
    if point.saved is None:
        return point
    if not point.universal:
        _load_as_it_is(session, point.saved)
        return point
    universal = Path(point.universal)
    refusals = torch.tensor(0.0 if has_share_of_every_group(session) else 1.0, device=session.device)
    if order.world_size > 1:
        dist.all_reduce(refusals)
    if not refusals:
        load_universal(session, universal)
    if order.world_size > 1:
        dist.barrier()  # all have read it
    if order.rank == 0:
        discard(universal)
    return _refuse(point.saved, order, _NO_SHARE) if refusals else point
