"""The data of a sweep, made ready before its first run asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.manifest import Manifest, read_manifest
from flopsfit_ds.plan.family import num_token_ids
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder


def prepare_data(
    plan: SweepPlan, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[Manifest, ...]:
    """Write the corpus of a sweep, and its held-out sets, as files of ids in the sweep's folder, or find them there.

    What a kill left is gone on with.

    Args:
        plan: Of the sweep.
        workers: Processes that tokenise; without it as many as this process may use cores.
        progress: Told of bytes that are done, and of all.

    Returns:
        What each file holds.

    Raises:
        DataError: A document cannot be read, an id is beyond the vocabulary, or all of the data is read in place.
        SweepFolderError: The folder cannot be written.
    """
    from flopsfit_ds.train.data.token_file import prepare_tokens

    corpora = [*plan.corpus.trained_on, *(corpus for _, corpus in plan.corpus.heldout_sets)]
    written = [corpus for corpus in corpora if corpus.reading is not None]
    if not written:
        absent = plan.corpus.absent
        what = "is read in place: there is nothing to prepare" if absent is None else "does not exist yet"
        raise DataError(f"data.path: {absent or plan.corpus.files[0]} {what}")
    SweepFolder(plan.folder).prepare()
    folder = plan.folder.absolute() / "data"
    manifests = []
    for corpus in written:
        tokens = prepare_tokens(corpus, folder, num_token_ids(plan.spec), workers=workers, progress=progress)
        manifest = read_manifest(Path(tokens.path).with_suffix(".json"))
        assert manifest is not None
        manifests.append(manifest)
    return tuple(manifests)
