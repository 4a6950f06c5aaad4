"""Only what this user wrote, signed and could have written alone is loaded, and of it tensors only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from flopsfit_ds.base.errors import RecordError, SweepFolderError
from flopsfit_ds.base.storage import read_json, write_json
from flopsfit_ds.base.trust import Trust
from flopsfit_ds.train.checkpoint.files import (
    SavedState,
    commit_checkpoint,
    newest_checkpoint,
    temporary_folder,
    verify_checkpoint,
)
from flopsfit_ds.train.checkpoint.tensors import tensors_only
from flopsfit_ds.train.order import EXIT_FAILED
from helpers.train.ranks import Bench, Layout


class Planted:
    """A pickle that makes a file when it is read: harmless, and seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def saved(folder: Path, trust: Trust, step: int = 5) -> Path:
    """A checkpoint of one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_folder(folder, step)
    (temporary / "state").mkdir(parents=True)
    torch.save({"weights": torch.ones(3)}, temporary / "state" / "rank_0.pt")
    commit_checkpoint(folder, SavedState(temporary, "run", step, 1.0, 5.5, 0, 1), trust=trust)
    return folder / f"step-{step}"


@pytest.fixture
def checkpoint(tmp_path):
    """A signed checkpoint in a sweep's folder, and what it must show."""
    trust = Trust.of_sweep(tmp_path, shared=False)
    return saved(tmp_path / "runs" / "run" / "checkpoint", trust), trust


def test_a_manifest_that_was_written_without_the_key_is_passed_over(checkpoint):
    path, trust = checkpoint
    assert verify_checkpoint(path, "run", trust=trust).step == 5
    manifest = read_json(path / "manifest.json")
    for altered in ({**manifest, "state": {**manifest["state"], "step": 4}}, {**manifest, "signature": None}):
        write_json(path / "manifest.json", altered)
        with pytest.raises(RecordError, match="signed with this sweep's key"):
            verify_checkpoint(path, "run", trust=trust)
    assert newest_checkpoint(path.parent, "run", trust=trust) is None


def test_a_checkpoint_from_before_keys_is_read_and_a_later_one_without_is_not(tmp_path):
    path = saved(tmp_path / "runs" / "run" / "checkpoint", Trust())
    os.utime(path / "manifest.json", (1.0, 1.0))
    trust = Trust.of_sweep(tmp_path, shared=False)
    assert verify_checkpoint(path, "run", trust=trust).step == 5
    os.utime(path / "manifest.json", (trust.seal.made_at + 10,) * 2)
    with pytest.raises(RecordError, match="signed"):
        verify_checkpoint(path, "run", trust=trust)


@pytest.mark.parametrize("which", ["state/rank_0.pt", "state", ".", "..", "../..", "../../..", "../../../.."])
def test_what_others_could_have_written_is_refused_with_what_mends_it(checkpoint, which):
    path, trust = checkpoint
    place = (path / which).resolve()
    place.chmod(place.stat().st_mode | 0o020)
    with pytest.raises(SweepFolderError, match=r"chmod -R go-w .*trust_shared_folder=true") as refused:
        verify_checkpoint(path, "run", trust=trust)
    assert f"go-w {place}" in str(refused.value)
    assert verify_checkpoint(path, "run", trust=Trust(shared=True)).step == 5
    place.chmod(place.stat().st_mode & ~0o022)
    assert verify_checkpoint(path, "run", trust=trust).step == 5


def test_a_link_is_not_followed(checkpoint, tmp_path):
    path, trust = checkpoint
    (path / "state" / "rank_0.pt").rename(tmp_path / "elsewhere.pt")
    (path / "state" / "rank_0.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(SweepFolderError, match="symbolic link"):
        verify_checkpoint(path, "run", trust=trust)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
@pytest.mark.parametrize("which", ["state/rank_0.pt", ".."])
def test_what_another_user_owns_is_refused(checkpoint, which):
    path, trust = checkpoint
    os.chown(path / which, 65534, 65534)
    with pytest.raises(SweepFolderError, match=f"belongs to user 65534, this is user {os.geteuid()}"):
        verify_checkpoint(path, "run", trust=trust)


def test_a_pickle_that_names_anything_but_tensors_is_refused_before_it_is_called(tmp_path):
    torch.save({"weights": torch.ones(2), "planted": Planted(tmp_path / "called")}, tmp_path / "state.pt")
    with tensors_only(), pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "state.pt", weights_only=False)  # as DeepSpeed asks for it
    assert not (tmp_path / "called").exists()
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "called").exists(), "the pickle is one that would have been called"


@pytest.mark.parametrize("layout", [Layout(0, 1), Layout(2, 2)], ids=str)
def test_a_worker_does_not_call_what_lies_in_a_checkpoint(server, stopped, tmp_path, layout):
    """Planted with right hashes, by somebody who can write into the folder."""
    bench = Bench(server, tmp_path, layout)
    bench.number = 1
    shutil.copytree(stopped(layout), bench.folder)
    for path in (bench.folder / "checkpoint").glob("step-*"):
        for file in path.rglob("*.pt"):
            content = torch.load(file, weights_only=False, map_location="cpu")
            torch.save({**content, "planted": Planted(tmp_path / "called")}, file)
        fields = read_json(path / "manifest.json")["state"]
        (path / "manifest.json").unlink()
        moved = path.rename(temporary_folder(path.parent, fields["step"]))
        commit_checkpoint(path.parent, SavedState(path=moved, **fields))
    attempt = bench.start(checkpoint_every_seconds=1e9)
    assert attempt.wait() == [EXIT_FAILED] * layout.world_size
    assert "Weights only load failed" in attempt.logs()
    assert not (tmp_path / "called").exists()
