"""What `find_optimal` is handed as a dataset, made a map-style dataset of pairs: whatever it is, or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.train.data.items.forms import Collated, Form, Pairs, first_row, is_numeric
from flopsfit_ds.train.data.items.mapped import mapped_rows
from flopsfit_ds.train.data.items.stored import store

_TARGETS = ("labels", "label", "targets", "target", "y")
"""Entries of a dictionary that are known as the target: by Hugging Face, then by everybody else."""
_SHOWN = 8  # names in an error of one line


@dataclass(frozen=True)
class Adapted:
    """A dataset as the harness uses it.

    Attributes:
        dataset: Map-style, of pairs.
        notes: What was made of it, for plan and record.
    """

    dataset: Any
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Adapter:
    """Makes datasets of any kind ones of pairs.

    Attributes:
        model_class: The class, or a function that builds a model.
        target: Entry of a dictionary that is the target, where the user says so.
        folder: The sweep's, where items of an iterable are written.
    """

    model_class: Callable[..., torch.nn.Module]
    target: str | None
    folder: Path

    def adapt(self, name: str, dataset: Any, num_samples: int | None = None) -> Adapted:
        """A map-style dataset of pairs.

        Args:
            name: The argument of `find_optimal` that it is.
            dataset: A map-style dataset, an array, a `DataLoader` or an iterable.
            num_samples: Of an iterable without a length.

        Raises:
            DataError: It is none of these, is empty, or its first item is of no known form.
        """
        dataset, notes = _unwrapped(name, dataset)
        if _is_iterable_only(dataset):
            return self._stored(name, dataset, num_samples, notes)
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{name}: {type(dataset).__name__} is not map-style; it needs __len__ and __getitem__, or __iter__ and "
                "a length"
            )
        if len(dataset) == 0:
            raise DataError(f"{name} is empty")
        try:
            item = dataset[0]
        except Exception as error:  # whatever the user's code raises
            raise DataError(f"{name}: item 0 raises {type(error).__name__}: {error}") from error
        form, told = self._form(name, item)
        adapted = dataset if form is None else Pairs(dataset, form)
        return Adapted(adapted, (*notes, *told))

    def _stored(self, name: str, dataset: Any, num_samples: int | None, notes: tuple[str, ...]) -> Adapted:
        """The items of an iterable, read once and written to a file."""
        count = num_samples if num_samples is not None else _length(name, dataset)
        if count < 1:
            raise DataError(f"{name} is empty")
        told: list[str] = []

        def pairs() -> Iterator[Any]:
            form: Form | None = None
            for number, item in enumerate(dataset):
                if number == 0:
                    form, said = self._form(name, item)
                    told.extend(said)
                try:
                    yield item if form is None else form.pair(item)
                except (KeyError, TypeError) as error:
                    raise DataError(f"{name}: item {number}: {type(error).__name__}: {error}") from None

        SweepFolder(self.folder).prepare()
        stored = store(name, pairs(), count, self.folder / "data")
        return Adapted(stored, (*notes, f"{name}: an iterable, read once into {Path(stored.path).name}", *told))

    def _form(self, name: str, item: Any) -> tuple[Form | None, tuple[str, ...]]:
        """How the items become pairs, None where they are, and what is said of it.

        Raises:
            DataError: The first item is of no known form.
        """
        if isinstance(item, (tuple, list)) and len(item) == 2:
            return None, ()
        if isinstance(item, (torch.Tensor, np.ndarray)):
            if item.ndim == 0:
                raise DataError(
                    f"{name}: its items are single numbers; hand over rows, as in ids[: n * length].reshape(n, length)"
                )
            return Form(), (f"{name}: an item is one tensor: loss_fn is handed it as the target, too",)
        if isinstance(item, Mapping):
            return self._form_of_mapping(name, item)
        raise DataError(
            f"{name}: an item is a pair (inputs, targets), a dictionary or a tensor; the first is a "
            f"{type(item).__name__}{f' of {len(item)}' if isinstance(item, (tuple, list)) else ''}"
        )

    def _form_of_mapping(self, name: str, item: Mapping[str, Any]) -> tuple[Form, tuple[str, ...]]:
        entries = list(item)
        there = ", ".join(map(str, entries[:_SHOWN])) + (", ..." if len(entries) > _SHOWN else "")
        known = [entry for entry in _TARGETS if entry in item]
        if self.target is None and len(known) != 1:
            found = f"both {known[0]!r} and {known[1]!r}" if known else "none that is known as a target"
            raise DataError(f"{name}: of the entries {there} there is {found}; give find_optimal target: the entry")
        target = known[0] if self.target is None else self.target
        if target not in item:
            raise DataError(f"{name}: it has no entry {target!r} for target; its entries are {there}")
        if not is_numeric(item[target]):
            raise DataError(f"{name}: its target {target!r} is a {type(item[target]).__name__}, no tensor or number")
        taken = _keywords(self.model_class)
        inputs = tuple(
            entry for entry in entries
            if is_numeric(item[entry]) and (entry in taken if taken is not None else entry != target)
        )  # fmt: skip
        if not inputs:
            raise DataError(f"{name}: none of the entries {there} is an argument of the model's forward")
        left_out = [str(entry) for entry in entries if entry not in inputs and entry != target]
        told = f"{name}: an item is a dictionary: {target!r} is the target, the model is handed {', '.join(inputs)}"
        return Form(target, inputs), (told + (f"; left out: {', '.join(left_out)}" if left_out else ""),)


def _unwrapped(name: str, dataset: Any) -> tuple[Any, tuple[str, ...]]:
    """What a loader loads, and mapped arrays as files to be mapped again."""
    if isinstance(dataset, DataLoader):
        inner, notes = _unwrapped(name, dataset.dataset)
        said = f"{name}: of the DataLoader its dataset is used; batches, order and workers are the harness's own"
        if dataset.batch_size is not None and dataset.collate_fn is not default_collate:
            said += ", and its collate_fn is handed one item at a time"
            inner = _collated(inner, dataset.collate_fn)
        return inner, (*notes, said)
    if isinstance(dataset, Subset):
        inner, notes = _unwrapped(name, dataset.dataset)
        return (dataset if inner is dataset.dataset else Subset(inner, dataset.indices)), notes
    if isinstance(dataset, np.memmap):
        rows = mapped_rows(dataset)
        if rows is not None:
            return rows, (f"{name}: {Path(rows.path).name} is mapped by every worker, not sent to it",)
    if isinstance(dataset, Mapping):
        there = ", ".join(map(str, list(dataset)[:_SHOWN]))
        raise DataError(
            f"{name}: it is a {type(dataset).__name__} with {there}; hand over one of them, and perhaps another as "
            "eval_dataset"
        )
    return dataset, ()


@dataclass(frozen=True)
class _CollatedStream:
    """The items of an iterable, each collated alone."""

    dataset: Any
    collate: Callable[[list[Any]], Any]

    def __iter__(self) -> Iterator[Any]:
        for item in self.dataset:
            yield first_row(self.collate([item]))


def _collated(dataset: Any, collate: Callable[[list[Any]], Any]) -> Any:
    return _CollatedStream(dataset, collate) if _is_iterable_only(dataset) else Collated(dataset, collate)


def _is_iterable_only(dataset: Any) -> bool:
    if isinstance(dataset, (IterableDataset, _CollatedStream)):
        return True
    return hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


def _length(name: str, dataset: Any) -> int:
    """Samples of an iterable.

    Raises:
        DataError: It does not say.
    """
    inner = dataset.dataset if isinstance(dataset, _CollatedStream) else dataset
    try:
        return len(inner)
    except TypeError:
        raise DataError(
            f"{name}: {type(inner).__name__} is not map-style and has no length; give find_optimal num_samples, or the "
            "dataset a __len__"
        ) from None


def _keywords(model_class: Callable[..., torch.nn.Module]) -> set[str] | None:
    """Names of what a class's forward takes; None where it takes anything, or is not known."""
    forward = getattr(model_class, "forward", None)
    if forward is None:
        return None
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}
