"""`find_optimal`: a scaling study of a model class, a dataset and a loss function of the user's own."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree
from torch.utils.data import default_collate

from flopsfit_ds.base.errors import DataError, FitError, SpecError
from flopsfit_ds.base.usercode import named, source_hash, what_stays
from flopsfit_ds.data.corpus import Corpus
from flopsfit_ds.engine import SweepStoppedError
from flopsfit_ds.model.loss_traits import LossTraits
from flopsfit_ds.plan.family import counts_active
from flopsfit_ds.plan.sweep_plan import RunPlan, SweepPlan, build_plan
from flopsfit_ds.simulate import Simulator
from flopsfit_ds.simulate.case import ClassCase
from flopsfit_ds.simulate.decide import review_placements
from flopsfit_ds.simulate.profile import LOOKED_AT_SAMPLES
from flopsfit_ds.spec import AdaptiveDesign, SweepSpec, validate_spec
from flopsfit_ds.study.datasets import Adapter
from flopsfit_ds.study.families.of_class import ClassFamily
from flopsfit_ds.study.probes.batches import plan_in_batches
from flopsfit_ds.study.probes.deepspeed_keys import check_deepspeed_keys
from flopsfit_ds.study.probes.items import check_items
from flopsfit_ds.study.probes.loss import look_at_loss
from flopsfit_ds.study.steps import SweepResult, conclude_sweep, run_sweep
from flopsfit_ds.train.data.dataset import DatasetWorkload, telling_batch
from flopsfit_ds.train.data.outputs import outputs_of
from flopsfit_ds.train.model.mup import ScaledClass
from flopsfit_ds.train.optimizers.own import look_at_own
from flopsfit_ds.train.order import WorkerTask
from flopsfit_ds.train.seeding import seeded

_FINGERPRINTED_SAMPLES = 32  # each is a call of the user's dataset; part of run ids, so that it stays


def find_optimal(
    model_class: Callable[..., nn.Module],
    *,
    size_parameter: str,
    dataset: Any,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    compute_budgets: Sequence[float | str],
    sample_loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    eval_dataset: Any | None = None,
    target: str | None = None,
    num_samples: int | None = None,
    heldout_fraction: float = 0.05,
    size_multiple_of: int = 1,
    tokens_per_sample: int | None = None,
    approximate_flops: bool = False,
    global_batch_samples: int = 64,
    name: str = "find-optimal",
    output_root: str = "outputs",
    design: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    hardware: Mapping[str, Any] | None = None,
    placement: Mapping[str, Any] | None = None,
    fit: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | None = None,
    train: bool = True,
    slots: int | None = None,
    progress: bool = True,
) -> SweepResult | SweepPlan:
    """Find the compute-optimal size of a model class: plan isoFLOP points, train them all, fit the law, report.

    Runs under any launcher, or none, and in a notebook. In a script call it under `if __name__ == "__main__":`, since
    workers import it. What they cannot import (classes of a notebook, or inside a function) is sent to them by value.

    Args:
        model_class: A module class, or a function that builds a model; planning builds it on the meta device, and one
            small model of it with weights, on which it sees what the loss depends on.
        size_parameter: The constructor's integer argument that grows it.
        dataset: A map-style dataset, an array, a `DataLoader` (whose dataset is used) or an iterable with a length
            (read once, into a file). An item is a pair (inputs, targets), where a dictionary of inputs is passed as
            keywords; a dictionary, of which one entry is the target; or a tensor, which is its own target.
        loss_fn: `loss_fn(model(inputs), targets)`, a scalar: the mean over the batch, or over its targets that are not
            -100. Where it fails on what the model returns, it is handed the `.logits` of that.
        compute_budgets: Training FLOPs a point.
        sample_loss_fn: `sample_loss_fn(model(inputs), targets)`, the loss of each sample, [batch]. Held-out losses are
            its mean. Needed where `loss_fn` of a batch is no mean over its samples or its unmasked targets (contrastive
            losses): planning refuses such a function without it, and with it holds GPUs and micro-batch equal.
        model_arguments: The constructor's other arguments: numbers, strings, booleans, None.
        eval_dataset: What the loss of a point is measured on; without it, a fixed share of `dataset` is held out.
        target: Entry of items that are dictionaries which is the target; without it `labels`, `label`, `targets`,
            `target` or `y`.
        num_samples: Samples of an iterable that has no length.
        heldout_fraction: That share.
        size_multiple_of: Granularity of the size parameter.
        tokens_per_sample: Predictions a sample counts as; without it, the length of a one-dimensional integer target,
            else 1.
        approximate_flops: Where the class's FLOPs cannot be counted, take 6 N D: far too few where a parameter is used
            many times a sample, far too many where some tokens use it only. Plan and records say so.
        global_batch_samples: Samples an optimiser step.
        name: Of the sweep and its folder.
        output_root: Folder in which the sweep's folder lies.
        design: Further keys of the spec's `design` section (`method` is isoflop).
        training: Keys of the spec's `training` section.
        hardware: Keys of the spec's `hardware` section.
        placement: Keys of the spec's `placement` section.
        fit: Keys of the spec's `fit` section.
        execution: Keys of the spec's `execution` section.
        train: False stops after planning.
        slots: Use so many devices of this machine.
        progress: Show what happens, in a terminal, a log or a notebook, and the answer at the end; a law that cannot be
            fitted is warned of in any case.

    Returns:
        The result: records, fit and report. With `train=False`, the plan.

    Raises:
        SpecError: The class takes no such parameter or cannot be built, or a key is unknown.
        DataError: The dataset is empty or ends early, an item that was looked at raises, is of no known form, or is
            unlike the others, or an object cannot be sent to workers.
        PlanError: The loss is no scalar, FLOPs cannot be counted, or no plan meets the budgets.
        SystemExit: Ctrl-C or another signal stopped it, with the exit code of the command; at a prompt, and in a
            notebook, it is KeyboardInterrupt. The same call goes on from the checkpoints.
    """
    if eval_dataset is not None and eval_dataset is dataset:
        raise DataError(
            "eval_dataset is dataset: the loss would be measured on what is trained; leave eval_dataset out, and a "
            "share of dataset is held out"
        )
    model_class = named(model_class)
    adapter = Adapter(model_class, target, Path(output_root) / name)
    adapted = adapter.adapt("dataset", dataset, num_samples)
    dataset, notes = adapted.dataset, [*adapted.notes]
    if eval_dataset is not None:
        adapted = adapter.adapt("eval_dataset", eval_dataset)
        eval_dataset = adapted.dataset
        notes += adapted.notes
    if train:
        _see_that_all_travels(
            model_class=model_class, dataset=dataset, eval_dataset=eval_dataset, loss_fn=loss_fn,
            sample_loss_fn=sample_loss_fn,
        )  # fmt: skip
    samples, tokens_per_sample = _first_samples(dataset, tokens_per_sample)
    if eval_dataset is None:
        heldout_samples = num_heldout = max(1, round(heldout_fraction * len(dataset)))
    else:
        heldout_samples, num_heldout = len(eval_dataset), 0
    if len(dataset) - num_heldout < 1:
        raise DataError(f"dataset: {len(dataset)} samples leave none to train on after {num_heldout} are held out")
    notes.append(check_items("dataset", dataset, dataset[0]))
    if eval_dataset is not None:
        notes.append(check_items("eval_dataset", eval_dataset, dataset[0]))
    probe = look_at_loss(
        model_class, model_arguments or {}, size_parameter, size_multiple_of, telling_batch(dataset), loss_fn,
        sample_loss_fn,
    )  # fmt: skip
    fingerprint = _fingerprint(dataset, eval_dataset, loss_fn, sample_loss_fn)
    spec = _spec(
        model_class, size_parameter, size_multiple_of, tokens_per_sample, fingerprint, len(dataset) + heldout_samples,
        heldout_samples, model_arguments or {}, approximate_flops, name=name, output_root=output_root,
        training=training, hardware=hardware, placement=placement, fit=fit, execution=execution,
        design={"compute_budgets": list(compute_budgets), **(design or {})},
        global_batch_tokens=global_batch_samples * tokens_per_sample,
    )  # fmt: skip
    check_deepspeed_keys(spec.placement.deepspeed)
    optimizer = look_at_own(spec.training.optimizer, None)
    if isinstance(spec.design, AdaptiveDesign):
        raise SpecError(
            "design.method adaptive: find_optimal trains one batch only; run `flopsfit-ds sweep` on a spec.yaml, "
            "or leave design.method out and choose further runs with `flopsfit-ds next`"
        )

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss_fn(outputs_of(model, batch[0], probe.traits), batch[1])

    family = ClassFamily(
        model_class,
        class_path=f"{model_class.__module__}:{model_class.__qualname__}",
        size_parameter=size_parameter,
        size_multiple_of=size_multiple_of,
        arguments=model_arguments or {},
        samples=samples,
        loss=loss,
        training=spec.training,
        tokens_per_sample=tokens_per_sample,
        vocab_size=None,
        approximate_flops=approximate_flops,
        sized_by_active=counts_active(spec),
        optimizer=optimizer,
    )
    corpus = Corpus(
        source="dataset",
        files=(),
        fingerprint=fingerprint,
        num_tokens=(len(dataset) - num_heldout + heldout_samples) * tokens_per_sample,
        num_bytes=0,
        heldout_tokens=heldout_samples * tokens_per_sample,
        dtype="object",
        tokenizer=None,
        notes=tuple(notes),
    )
    family.warnings += probe.warnings
    build = functools.partial(build_plan, spec, family=family, corpus=corpus, loss=probe.traits, optimizer=optimizer)
    plan = plan_in_batches(build, family, model_class, dataset, loss)
    if spec.execution.simulate_memory:
        with Simulator() as simulator:
            case_of = functools.partial(_case, model_class, samples, loss_fn, fingerprint)
            plan = review_placements(plan, plan.runs, lambda done, total: None, simulator, case_of)
    if not train:
        return plan
    workloads = _Workloads(
        model_class, dataset, eval_dataset, num_heldout, loss_fn, sample_loss_fn, tokens_per_sample, probe.traits
    )
    return _carried_out(plan, functools.partial(_task, plan, workloads), slots, progress)


def _carried_out(
    plan: SweepPlan, tasks: Callable[[RunPlan], WorkerTask], slots: int | None, progress: bool
) -> SweepResult:
    """Train, fit and report, shown as the command shows it."""
    from flopsfit_ds.study.console import Console
    from flopsfit_ds.study.progress import SweepDisplay
    from flopsfit_ds.study.tracking import Tracking

    console = Console(quiet=not progress)
    try:
        with Tracking(plan, console.warn) as tracking:
            with SweepDisplay(console, plan, tracking.start) as display:
                records = run_sweep(plan, tasks=tasks, slots=slots, progress=display)
            result = conclude_sweep(plan, records)
    except SweepStoppedError as stop:
        if hasattr(sys, "ps1") or "ipykernel" in sys.modules:
            raise KeyboardInterrupt(str(stop)) from None  # a notebook, or a prompt, goes on
        Console(stderr=True).tell(f"stopped: {stop}")
        raise SystemExit(stop.exit_code) from None
    if isinstance(result.fit, FitError):
        warnings.warn(f"{plan.name}: {result.answer()}; result.law raises this error", stacklevel=3)
    console.print(result.answer(), markup=False, highlight=False)
    console.tell(f"report {result.report}")
    return result


@dataclass(frozen=True)
class _Workloads:
    """What all runs of a study share."""

    model_class: Callable[..., nn.Module]
    dataset: Any
    heldout: Any | None
    num_heldout: int
    loss_fn: Callable[[Any, Any], torch.Tensor]
    sample_loss_fn: Callable[[Any, Any], torch.Tensor] | None
    tokens_per_sample: int
    traits: LossTraits


def _case(
    model_class: Callable[..., nn.Module],
    samples: Any,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    fingerprint: str,
    run: RunPlan,
) -> ClassCase:
    """What a simulation trains in the place of a run."""
    assert run.model.family == "class"
    frozen = run.recipe.frozen_parameters
    optimizer = run.recipe.optimizer
    identity = f"{run.model.source_hash} {run.model.arguments} {fingerprint} {frozen} {optimizer}"
    return ClassCase(_class_of(model_class, run), run.model.arguments, samples, loss_fn, frozen, identity, optimizer)


def _class_of(model_class: Callable[..., nn.Module], run: RunPlan) -> Callable[..., nn.Module]:
    """The class whose models a run trains."""
    return model_class if run.model.mup is None else ScaledClass(model_class, run.model.mup)


def _task(plan: SweepPlan, shared: _Workloads, run: RunPlan) -> WorkerTask:
    assert run.model.family == "class"
    workload = DatasetWorkload(
        model_class=_class_of(shared.model_class, run),
        arguments=run.model.arguments,
        dataset=shared.dataset,
        heldout=shared.heldout,
        num_heldout=shared.num_heldout,
        loss_fn=shared.loss_fn,
        sample_loss_fn=shared.sample_loss_fn,
        tokens_per_sample=shared.tokens_per_sample,
        traits=shared.traits,
    )
    return WorkerTask(
        run,
        workload,
        plan.spec.training.checkpoint_every,
        plan.cluster.peak_flops,
        sweep_folder=str(plan.folder.absolute()),
        trust_shared_folder=plan.spec.execution.trust_shared_folder,
        hang_timeout_seconds=plan.spec.execution.hang_timeout,
        data_workers=plan.spec.training.data_workers,
    )


def _spec(
    model_class: Callable[..., nn.Module],
    size_parameter: str,
    size_multiple_of: int,
    tokens_per_sample: int,
    fingerprint: str,
    num_samples: int,
    heldout_samples: int,
    model_arguments: Mapping[str, Any],
    approximate_flops: bool,
    *,
    training: Mapping[str, Any] | None,
    global_batch_tokens: int,
    **sections: Any,
) -> SweepSpec:
    """The spec that says the same as the arguments of `find_optimal`."""
    for name, value in model_arguments.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise SpecError(
                f"model_arguments: {name} is {value!r}; a plan holds numbers, strings, booleans and None only: hand "
                "over a function that takes the size and builds the model with it"
            )
    values = {key: value for key, value in sections.items() if value is not None}
    values["model"] = {
        "family": "class",
        "class_path": f"{_identifier(model_class.__module__)}:{_identifier(model_class.__name__)}",
        "size_parameter": size_parameter,
        "size_multiple_of": size_multiple_of,
        "context_length": tokens_per_sample,
        "approximate_flops": approximate_flops,
    }
    values["data"] = {
        "source": "dataset",
        "fingerprint": fingerprint,
        "num_samples": num_samples,
        "heldout_tokens": heldout_samples * tokens_per_sample,
    }
    values["training"] = {"global_batch_tokens": global_batch_tokens, **(training or {})}
    return validate_spec(values, "find_optimal")


def _first_samples(dataset: Any, tokens_per_sample: int | None) -> tuple[Any, int]:
    """A batch of the first sample, as often as a class is looked at with, and how many predictions a sample is."""
    inputs, targets = default_collate([tuple(dataset[0])] * LOOKED_AT_SAMPLES)
    if tokens_per_sample is None:
        is_sequence = isinstance(targets, torch.Tensor) and targets.ndim == 2 and not targets.is_floating_point()
        return (inputs, targets), int(targets.shape[1]) if is_sequence else 1
    return (inputs, targets), tokens_per_sample


def _see_that_all_travels(**objects: Any) -> None:
    """See that workers can be sent what they need.

    Raises:
        DataError: An object, which is named, cannot be sent.
    """
    for name, value in objects.items():
        stays = what_stays(name, value)
        if stays is not None:
            raise DataError(
                f"{name}: it cannot be sent to workers: {stays}; make it in the worker, where it is first used, and "
                "leave it out of what is pickled (__getstate__)"
            )


def _identifier(name: str) -> str:
    """A name as a spec writes it: a function without one is `<lambda>`."""
    return re.sub(r"[^\w.]", "_", name)


def _fingerprint(dataset: Any, eval_dataset: Any | None, *losses: Callable[..., Any] | None) -> str:
    """Hash of the lengths, of evenly spaced samples, and of the loss functions' source."""
    digest = hashlib.sha256(source_hash(*losses).encode())
    for samples in (dataset, eval_dataset):
        if samples is None:
            continue
        digest.update(str(len(samples)).encode())
        count = min(len(samples), _FINGERPRINTED_SAMPLES)
        for number in range(count):
            with seeded(number):  # for a dataset that draws at random
                sample = samples[number * (len(samples) - 1) // max(count - 1, 1)]
            for leaf in _pytree.tree_leaves(sample):
                digest.update(source_hash(leaf).encode() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return digest.hexdigest()[:16]
