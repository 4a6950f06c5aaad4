"""What a user's loss is, found on a small model with weights before anything is planned.

A loss may be a mean over samples, a mean over targets that are not masked, or neither: then it depends on how the
global batch is split. Which it is, is seen from a batch, its parts and its samples, each passed through the model.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from flopsfit_ds.base.errors import PlanError, SpecError
from flopsfit_ds.base.usercode import import_class
from flopsfit_ds.model.loss_traits import CountedEntries, LossTraits
from flopsfit_ds.simulate.profile import count_parameters
from flopsfit_ds.spec import ClassModel
from flopsfit_ds.study.probes.layout import mixes_samples
from flopsfit_ds.train.data.means import IGNORED, close, count_entries, no_mean, sample_weights, weighted_mean
from flopsfit_ds.train.data.outputs import call_model, logits_of, num_samples, rows_of, tensors_of
from flopsfit_ds.train.model.cross_entropy import plain_losses
from flopsfit_ds.train.seeding import seeded

_SEED = 0x10550  # any, and always the same
_SHAKE = 0.02
"""Standard deviation of what is added to each weight: layers that begin at zero would hide what the loss depends on."""
_LARGEST_PARAMS = 50_000_000  # 0.2 GB of fp32
_SIZES = 24  # doublings: far beyond the parameters above
_SEQUENCES = 4  # as many as of a dataset (`dataset._TELLING_SAMPLES`)
_SIGNED = (torch.int64, torch.int32, torch.int16)
_DEVICE_WORDS = ("cuda", "gpu", "flash", "triton", "nccl")
"""Of errors that say that a class cannot run on a CPU."""

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        traits: Of the loss.
        warnings: What could not be seen.
    """

    traits: LossTraits
    warnings: tuple[str, ...] = ()


def look_at_loss(
    model_class: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    size_parameter: str,
    size_multiple_of: int,
    batch: Any,
    loss_fn: Loss,
    sample_loss_fn: Loss | None,
) -> Probe:
    """Find out what a loss is, on the smallest model of a class that can be built and run.

    Args:
        model_class: The class.
        arguments: Of its constructor, but for the size.
        size_parameter: The constructor's argument that grows it.
        size_multiple_of: Its granularity.
        batch: A few samples, collated (inputs, targets); with masked targets where the data has any.
        loss_fn: `loss_fn(outputs, targets)`, a scalar.
        sample_loss_fn: The loss of each sample, [batch], or None.

    Raises:
        PlanError: The loss fails on a batch of the data, or is neither a mean nor has a `sample_loss_fn`.
    """
    first: Exception | None = None
    for power in range(_SIZES):
        values = {**arguments, size_parameter: size_multiple_of * 2**power}
        with seeded(_SEED):
            try:
                if count_parameters(model_class, values) > _LARGEST_PARAMS:
                    break
                model = model_class(**values).float()
            except Exception as error:
                first = first or error
                continue
            _shake(model)
            try:
                return Probe(_traits(model, batch, loss_fn, sample_loss_fn))
            except PlanError:
                raise
            except Exception as error:
                first = error if first is None or isinstance(first, SpecError) else first
    return _not_seen(model_class, first)


def look_at_language_model(model: ClassModel) -> Probe:
    """The same for a spec's class, called as `model(tokens)`, on tokens drawn at random.

    Raises:
        PlanError: The class fails on them.
    """
    with seeded(_SEED):
        tokens = torch.randint(model.vocab_size, (_SEQUENCES, model.context_length))

    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return plain_losses(logits_of(outputs), targets).mean()

    return look_at_loss(
        import_class(model.class_path), model.arguments, model.size_parameter, model.size_multiple_of,
        (tokens, tokens), loss, None,
    )  # fmt: skip


def _not_seen(model_class: Callable[..., nn.Module], error: Exception | None) -> Probe:
    """What fails for want of a device is said; what fails in the user's own code would fail in every run."""
    if error is None or isinstance(error, SpecError):
        return Probe(LossTraits())  # the family says why the class cannot be built
    name = model_class.__name__
    shown = f"{type(error).__name__}: {error}".splitlines()[0]
    if any(word in str(error).lower() for word in _DEVICE_WORDS):
        said = (
            f"{name} cannot run on a CPU ({shown}), so it is not known whether its loss depends on GPUs and "
            "micro-batch; if it may, write one number for placement.num_gpus and placement.max_micro_batch_size_per_gpu"
        )
        return Probe(LossTraits(), (said,))
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise PlanError(
        f"{name} and loss_fn fail on samples of the data: {shown} ({Path(frame.filename).name}:"
        f"{frame.lineno}); the loss is loss_fn(model(inputs), targets) of items (inputs, targets)"
    ) from error


def _shake(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter += _SHAKE * torch.randn_like(parameter)


def _traits(model: nn.Module, batch: Any, loss_fn: Loss, sample_loss_fn: Loss | None) -> LossTraits:
    inputs, targets = batch
    size = num_samples(targets)
    model.eval()
    with torch.no_grad():
        takes_logits = _takes_logits(call_model(model, inputs), targets, loss_fn)

        def of_outputs(function: Loss, outputs: Any, targets: Any) -> torch.Tensor:
            return function(logits_of(outputs) if takes_logits else outputs, targets)

        def loss(batch: Any) -> torch.Tensor:
            return _scalar(of_outputs(loss_fn, call_model(model, batch[0]), batch[1]))

        whole = loss(batch).item()
        if not math.isfinite(whole):
            raise PlanError(
                f"loss_fn: the loss of {size} samples of the data is {whole} on a small model with fresh weights; look "
                "for values in the data that are infinite or no numbers, or for a loss that overflows"
            )
        traits = LossTraits(takes_logits=takes_logits, counted=_counted(batch, size, loss), masked=_masked(batch))
        if traits.counted is not None and not _is_mean(batch, size, loss, traits.counted):
            traits = replace(traits, counted=None)
        if sample_loss_fn is None:
            traits = replace(traits, counts_in_heldout=traits.counted is not None)
            outputs = call_model(model, inputs)
            if not _has_rows(outputs, batch, size, loss, lambda o, t: of_outputs(loss_fn, o, t)):
                traits = replace(traits, sample_by_sample=True)
        elif traits.counted is not None:
            losses = of_outputs(sample_loss_fn, call_model(model, inputs), targets)
            counts = count_entries(batch, traits.counted)
            mean, whole = weighted_mean(losses, counts), loss(batch).item()
            traits = replace(traits, counts_in_heldout=close(whole, mean, weighted_mean(losses.abs(), counts)))
        if not _is_mean(batch, size, loss, traits.counted):
            losses = _singles(batch, size, loss)
            mean = losses.double().mean().item()
            if sample_loss_fn is None:
                raise PlanError(no_mean(size, whole, mean))
            why = f"the loss of {size} samples is {whole:.6g}, and the mean over each of them alone {mean:.6g}"
            return replace(traits, depends_on_layout=why, needs_whole_batches=True)
        why = mixes_samples(
            model,
            batch,
            lambda model, batch: of_outputs(loss_fn, call_model(model, batch[0]), batch[1]),
            traits.counted,
        )
        if why is not None:
            return replace(traits, depends_on_layout=why, needs_one_gpu=True)
    return traits


def _scalar(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        found = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"{value!r}"
        raise PlanError(f"the loss function must return a scalar tensor; it returned {found}: take its mean")
    return value


def _takes_logits(outputs: Any, targets: Any, loss_fn: Loss) -> bool:
    """Whether the loss fails on what the model returns, and does not on the `.logits` of it."""
    try:
        loss_fn(outputs, targets)
    except Exception:
        logits = logits_of(outputs)
        if logits is outputs:
            raise
        loss_fn(logits, targets)
        return True
    return False


def _masked(batch: Any) -> bool:
    return any(not leaf.is_floating_point() and bool((leaf == IGNORED).any()) for leaf in tensors_of(batch))


def _counted(batch: Any, size: int, loss: Callable[[Any], torch.Tensor]) -> CountedEntries | None:
    """The entries that the loss is a mean over, found by masking a different share of them in each sample.

    Models that shift their labels by themselves (transformers) leave the first of each sample out.
    """
    leaves = tensors_of(batch)
    integers = [number for number, leaf in enumerate(leaves) if leaf.ndim and leaf.dtype in _SIGNED]
    errors: dict[CountedEntries, float] = {}
    for number in integers:
        leaf = leaves[number].clone()
        if leaf.ndim == 1:
            leaf[0] = IGNORED
        else:
            for sample in range(size):
                leaf[sample, max(2, leaf.shape[1] >> sample) :] = IGNORED
        masked = _with_leaf(batch, number, leaf)
        try:
            if _is_mean(masked, size, loss, None):
                continue
            for counted in (CountedEntries(number), CountedEntries(number, 1)):
                if _is_mean(masked, size, loss, counted):
                    mean = weighted_mean(_singles(masked, size, loss), count_entries(masked, counted))
                    errors[counted] = abs(loss(masked).item() - mean)
        except (IndexError, RuntimeError, ValueError):  # -100 is no target to this loss, or no index to this embedding
            continue
    return min(errors, key=lambda counted: errors[counted], default=None)


def _with_leaf(batch: Any, number: int, leaf: torch.Tensor) -> Any:
    leaves, form = _pytree.tree_flatten(batch)
    tensors = [index for index, each in enumerate(leaves) if isinstance(each, torch.Tensor)]
    leaves[tensors[number]] = leaf
    return _pytree.tree_unflatten(leaves, form)


def _singles(batch: Any, size: int, loss: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    return torch.stack([loss(rows_of(batch, slice(index, index + 1), size)) for index in range(size)])


def _is_mean(batch: Any, size: int, loss: Callable[[Any], torch.Tensor], counted: CountedEntries | None) -> bool:
    """Whether the loss of a batch is the mean over its samples, each passed through the model alone."""
    losses = _singles(batch, size, loss)
    weights = sample_weights(batch, size, counted)
    return close(loss(batch).item(), weighted_mean(losses, weights), weighted_mean(losses.abs(), weights))


def _has_rows(outputs: Any, batch: Any, size: int, loss: Callable[[Any], torch.Tensor], of_outputs: Loss) -> bool:
    """Whether the rows of the outputs of a batch give the losses of its samples."""
    rows = [slice(index, index + 1) for index in range(size)]
    try:
        found = [of_outputs(rows_of(outputs, row, size), rows_of(batch[1], row, size)).item() for row in rows]
    except Exception:
        return False
    alone = _singles(batch, size, loss).tolist()
    pairs = zip(found, alone, strict=True)
    return all(close(one, other, abs(other)) or (math.isnan(one) and math.isnan(other)) for one, other in pairs)
