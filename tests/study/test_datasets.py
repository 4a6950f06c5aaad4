"""Datasets of every kind become the same samples; objects that workers cannot import travel by value, or are named."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from flopsfit_ds.base.errors import DataError, SpecError
from flopsfit_ds.base.usercode import pickled, what_stays
from flopsfit_ds.plan.sweep_plan import SweepPlan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.study import optimal
from flopsfit_ds.study.datasets import Adapter
from flopsfit_ds.train.data.dataset import _collate
from helpers.study.own_model import Regressor, Waves, study

X = torch.arange(40, dtype=torch.float32).view(10, 4)
Y = X.sum(1)
PAIRS = [(x, y) for x, y in zip(X, Y, strict=True)]


class Keywords(nn.Module):
    """Takes its inputs by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x)


class Stream(IterableDataset):
    """Items one after the other, and how many they are said to be."""

    def __init__(self, items: Any, said: int | None = None) -> None:
        self.items, self.said = items, said

    def __iter__(self) -> Any:
        return iter(self.items)

    def __len__(self) -> int:
        if self.said is None:
            raise TypeError("no length")
        return self.said


class Rows:
    """What a Hugging Face dataset looks like: numbers and lists of numbers in dictionaries."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"x": X[number].tolist(), "label": float(Y[number]), "text": "words", "scale": None, "idx": number}


def adapted(dataset: Any, work: Path, model_class: Any = Keywords, **options: Any) -> Any:
    return Adapter(model_class, options.pop("target", None), work).adapt("dataset", dataset, **options)


def same_samples(dataset: Any) -> None:
    """See that they are `PAIRS`, as a worker would read them."""
    sent = pickle.loads(pickled(dataset))
    assert len(sent) == 10
    inputs, targets = _collate(sent, [7, 0, 3])
    inputs = inputs["x"] if isinstance(inputs, dict) else inputs
    assert torch.equal(inputs, X[[7, 0, 3]])
    assert torch.equal(targets.float(), Y[[7, 0, 3]])


DATASETS: dict[str, Any] = {
    "pairs": PAIRS,
    "tensors": TensorDataset(X, Y),
    "subset": Subset(TensorDataset(torch.cat([X + 1, X]), torch.cat([Y, Y])), range(10, 20)),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "loader with a collate function": DataLoader(PAIRS, collate_fn=lambda items: tuple(map(torch.stack, zip(*items)))),  # noqa: B905
    "iterable": Stream(PAIRS, 10),
    "loader of an iterable": DataLoader(Stream(PAIRS, 10), batch_size=3),
    "iterable of dictionaries": Stream([{"x": x, "y": y} for x, y in PAIRS], 10),
    "dictionaries": [{"x": x, "labels": y} for x, y in PAIRS],
    "rows of lists": Rows(),
    "loader of dictionaries": DataLoader(
        Rows(), collate_fn=lambda rows: {"x": torch.tensor([r["x"] for r in rows]), "y": torch.tensor([r["label"] for r in rows])}  # noqa: E501
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_of_any_kind_gives_the_same_samples(kind, tmp_path):
    same_samples(adapted(DATASETS[kind], tmp_path).dataset)


def test_pairs_are_left_as_they_are_and_nothing_is_said_of_them(tmp_path):
    waves = Waves()
    found = adapted(waves, tmp_path)
    assert found.dataset is waves
    assert found.notes == ()


def test_what_was_made_of_a_dictionary_is_said(tmp_path):
    (note,) = adapted(Rows(), tmp_path).notes
    assert (
        note
        == "dataset: an item is a dictionary: 'label' is the target, the model is handed x; left out: text, scale, idx"
    )


def test_a_target_that_the_model_takes_itself_is_handed_to_it_too(tmp_path):
    class WithLoss(Keywords):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x)

    inputs, targets = adapted(DATASETS["dictionaries"], tmp_path, WithLoss).dataset[3]
    assert torch.equal(inputs["labels"], targets)
    assert set(adapted(DATASETS["dictionaries"], tmp_path).dataset[3][0]) == {"x"}


def test_a_tensor_is_its_own_target_and_a_mapped_file_is_not_sent(tmp_path):
    ids = np.arange(60_000, dtype=np.uint16).reshape(3000, 20)
    np.save(tmp_path / "ids.npy", ids)
    for part in (slice(None), slice(1000, 2000)):
        mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")[part]
        found = adapted(mapped, tmp_path)
        sent = pickled(found.dataset)
        assert len(sent) < 1000
        inputs, targets = pickle.loads(sent)[7]
        assert inputs.dtype == torch.int64
        assert inputs.tolist() == targets.tolist() == ids[part][7].tolist()
        assert any("ids.npy is mapped by every worker, not sent to it" in note for note in found.notes)
    plain = adapted(Subset(np.load(tmp_path / "ids.npy", mmap_mode="r"), [5]), tmp_path)
    assert len(pickled(plain.dataset)) < 2000
    assert plain.dataset[0][0].tolist() == ids[5].tolist()


def test_an_iterable_is_read_once_and_any_item_of_it_is_found_by_number(tmp_path):
    items = [({"a": torch.full((2,), n, dtype=torch.bfloat16)}, (n, n / 2, n % 2 == 0)) for n in range(20)]
    stored = adapted(Stream(items, 20), tmp_path).dataset
    again = adapted(iter(items), tmp_path, num_samples=20).dataset
    assert stored == again
    for number in (19, 0, 7):
        assert str(stored[number]) == str(items[number])
    assert adapted(Stream(items), tmp_path, num_samples=5).dataset.path != stored.path
    assert len(list((tmp_path / "data").iterdir())) == 2
    with pytest.raises(IndexError):
        stored[20]


@pytest.mark.parametrize(
    ("dataset", "options", "words"),
    [
        (Stream(PAIRS, 11), {}, "ends early: it says that it has 11 samples, and gave 10"),
        (Stream(PAIRS), {}, "Stream is not map-style and has no length; give find_optimal num_samples"),
        (iter([]), {}, "not map-style"),
        (Stream([], 0), {}, "is empty"),
        (Stream([*PAIRS, (X[0], Y)], 11), {}, r"item 10 is float32 \[4\], float32 \[10\], and the first is"),
        (Stream([("a", 1)], 1), {}, "item 0 holds a str; items of an iterable are tensors, arrays and numbers"),
        (Stream([{"x": X[0], "y": Y[0]}, {"x": X[0]}], 2), {}, "item 1: KeyError: 'y'"),
        (np.arange(1000), {}, "items are single numbers|the first is a int64"),
        (torch.arange(1000), {}, r"items are single numbers; hand over rows, as in ids\[: n \* length\]"),
        ([{"x": X[0], "score": Y[0]}], {}, "entries x, score there is none that is known .*; give find_optimal target"),
        ([{"x": X[0], "label": Y[0], "y": Y[0]}], {}, "there is both 'label' and 'y'; give find_optimal target"),
        ([{"x": X[0], "y": Y[0]}], {"target": "z"}, "no entry 'z' for target; its entries are x, y"),
        ([{"x": X[0], "y": "cat"}], {}, "its target 'y' is a str, no tensor or number"),
        ([{"inputs": X[0], "y": Y[0]}], {}, "none of the entries inputs, y is an argument of the model's forward"),
        ({"train": PAIRS, "test": PAIRS}, {}, "it is a dict with train, test; hand over one of them"),
        ([(X[0], Y[0], Y[0])], {}, "a pair .*, a dictionary or a tensor; the first is a tuple of 3"),
        ([[1.0]], {}, "the first is a list of 1"),
    ],
)
def test_what_is_no_dataset_is_named(dataset, options, words, tmp_path):
    with pytest.raises(DataError, match=words):
        adapted(dataset, tmp_path, **options)
    assert not list((tmp_path / "data").glob("*"))


def test_a_hugging_face_dataset_is_taken_as_it_is(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([Rows()[number] for number in range(10)])
    same_samples(adapted(rows, tmp_path).dataset)
    rows.save_to_disk(str(tmp_path / "saved"))
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    same_samples(adapted(loaded.with_format("torch"), tmp_path).dataset)
    same_samples(adapted(loaded.to_iterable_dataset(), tmp_path, num_samples=10).dataset)
    with pytest.raises(DataError, match="DatasetDict with train; hand over one of them"):
        adapted(datasets.DatasetDict({"train": rows}), tmp_path)


def planned(model_class: Any, **changes: Any) -> SweepPlan:
    plan = study(model_class, train=False, **changes)
    assert isinstance(plan, SweepPlan)
    return plan


def test_a_function_that_builds_a_model_is_as_good_as_its_class():
    def build(breadth: int) -> nn.Module:
        return Regressor(width=breadth)

    by_class = planned(Regressor)
    for factory, size in ((build, "breadth"), (lambda width: Regressor(width), "width")):
        by_function = planned(factory, size_parameter=size)
        assert [run.num_params_total for run in by_function.runs] == [run.num_params_total for run in by_class.runs]
        assert [run.flops for run in by_function.runs] == [run.flops for run in by_class.runs]
    partial = planned(functools.partial(Regressor, inputs=16))
    assert [run.flops for run in partial.runs] == [run.flops for run in by_class.runs]
    with pytest.raises(SpecError, match="hand over a function that takes the size and builds the model with it"):
        planned(Regressor, model_arguments={"inputs": {"config": 16}})


def test_what_cannot_be_sent_is_named_before_anything_is_planned(tmp_path):
    class Guarded(Waves):
        def __init__(self) -> None:
            super().__init__(100)
            self.parts = {"lock": threading.Lock()}

    lock = threading.Lock()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with lock:
            return nn.functional.mse_loss(outputs, targets)

    with pytest.raises(DataError, match=r"dataset: it cannot .*: dataset.parts\['lock'\] is a _thread.lock; make it"):
        study(dataset=Guarded(), output_root=str(tmp_path))
    with pytest.raises(DataError, match=r"loss_fn: it cannot .*: lock, which loss_fn names, is a _thread.lock"):
        study(loss_fn=loss, output_root=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_class_inside_a_function_is_sent_by_value():
    factor = 3

    class Scaled(Waves):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return factor * x, y

    sent = pickled(Scaled(8))
    assert what_stays("dataset", Scaled(8)) is None
    read = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[5][0].sum().item())"
    done = subprocess.run(
        [sys.executable, "-c", read], input=sent, capture_output=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert float(done.stdout) == pytest.approx(float(3 * Waves(8).x[5].sum()))


NOTEBOOK = """
import sys, torch
from torch import nn
from flopsfit_ds import find_optimal

class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 1))
    def forward(self, x):
        return self.layers(x).squeeze(-1)

def main():
    class Sums(torch.utils.data.Dataset):
        def __len__(self):
            return 500
        def __getitem__(self, number):
            x = torch.randn(4, generator=torch.Generator().manual_seed(number))
            return {"x": x, "y": x.sum()}
    find_optimal(
        Model, size_parameter="width", dataset=Sums(), loss_fn=lambda o, t: nn.functional.mse_loss(o, t),
        compute_budgets=[2e6], global_batch_samples=16, output_root=sys.argv[1], progress=False,
        design={"sizes_per_budget": 2, "tokens_per_parameter": 20, "size_span": 4},
        training={"precision": "fp32", "learning_rates": [1e-2]}, hardware={"device": "cpu", "gpus_per_node": 1},
    )
main()
"""


@pytest.mark.slow
def test_a_study_of_a_notebook_trains_what_no_worker_could_import(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, str(tmp_path)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    records = list(SweepFolder(tmp_path / "find-optimal").records())
    assert [record.status for record in records] == ["completed"] * 2
    assert all(record.loss is not None and record.loss < 1 for record in records)
    assert any("an item is a dictionary: 'y' is the target" in note for note in records[0].data)


def test_a_study_has_batches_built_ahead_where_it_says_so_and_stays_the_same_study(tmp_path, monkeypatch):
    monkeypatch.setattr(optimal, "_carried_out", lambda plan, tasks, slots, progress: (plan, tasks))

    def first(**training: Any) -> Any:
        plan, tasks = study(
            output_root=str(tmp_path), training={"precision": "fp32", "learning_rates": [3e-3], **training}
        )
        return plan.runs[0].run_id, tasks(plan.runs[0]).data_workers

    (plain_id, none), (same_id, two) = first(), first(data_workers=2)
    assert plain_id == same_id
    assert (none, two) == (0, 2)
    with pytest.raises(SpecError, match=r"training\.data_workers"):
        first(data_workers=-1)
