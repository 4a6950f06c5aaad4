"""How the runs were made, in sentences: whether learning rates were tuned, data repeats, and how fast they trained."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from flopsfit_ds.base.units import format_count
from flopsfit_ds.records import RunRecord

_ALIKE = 1.02  # sizes of one place of a design differ by less: multiples of the width


def conduct(records: Sequence[RunRecord]) -> list[str]:
    """One sentence a question that a careful reader asks; none where no run has trained."""
    trained = [record for record in records if record.observed is not None]
    if not trained:
        return []
    return [_tuning(trained), _repeats(trained), *_speed(trained), *_scaling(trained)]


def _tuning(records: Sequence[RunRecord]) -> str:
    tried: dict[tuple[int, int], set[float]] = defaultdict(set)
    for record in records:
        tried[record.planned.num_params_total, record.planned.num_tokens].add(record.learning_rate)
    tuned = sum(len(rates) > 1 for rates in tried.values())
    if tuned:
        return f"Learning rates were tried at {tuned} of {len(tried)} places of the design, several at each."
    rates = {rate for some in tried.values() for rate in some}
    if len(rates) == 1:
        return (
            f"Learning rates were not tuned: every run took {rates.pop():.3g}. A rate that suits some sizes better "
            "than others tilts the law; training.learning_rates with several values shows whether it does."
        )
    return (
        f"Learning rates follow a rule, from {min(rates):.3g} to {max(rates):.3g}, and were not tried beside others at "
        "any place."
    )


def _repeats(records: Sequence[RunRecord]) -> str:
    known = [(record, record.unique_tokens) for record in records if record.unique_tokens]
    if not known:
        return "How many tokens are distinct is not on record, so whether data repeats is not known."
    epochs: dict[str, float] = {}
    of_source: dict[str, str] = {}
    for record, unique in known:
        passes = {f", source {name}": each.repeats for name, each in record.sources.items()}
        passes = passes or {"": record.planned.num_tokens / unique}
        of_source[record.label] = max(passes, key=lambda name: passes[name])
        epochs[record.label] = passes[of_source[record.label]]
    most = max(epochs, key=lambda label: epochs[label])
    if epochs[most] <= 1.0:
        return f"No data repeats: the longest run saw {epochs[most]:.0%} of the distinct tokens{of_source[most]}."
    repeated = sum(epoch > 1.0 for epoch in epochs.values())
    return (
        f"Data repeats in {repeated} of {len(epochs)} runs, up to {epochs[most]:.1f} times ({most}{of_source[most]}); "
        "a law of fresh data is then too pessimistic about tokens."
    )


def _speed(records: Sequence[RunRecord]) -> list[str]:
    seen = [record.observed for record in records if record.observed is not None]
    rates = [each.tokens_per_second / each.world_size for each in seen if each.tokens_per_second]
    used = [each.model_flops_utilisation for each in seen if each.model_flops_utilisation is not None]
    found = []
    if rates:
        found.append(f"A device trained {format_count(min(rates))} to {format_count(max(rates))} tokens a second")
    if used:
        found.append(f"MFU was {min(used):.1%} to {max(used):.1%}, with a median of {statistics.median(used):.1%}")
    return ["; ".join(found) + "."] if found else []


def _scaling(records: Sequence[RunRecord]) -> Iterable[str]:
    """FLOP/s a device of runs on several, over those of runs of the same size on one."""
    alone = [record for record in records if record.observed is not None and record.observed.world_size == 1]
    layouts: dict[tuple[int, int], list[float]] = defaultdict(list)
    for record in records:
        seen = record.observed
        if seen is None or seen.world_size == 1:
            continue
        same = [one for one in alone if _alike(one, record)]
        if same:
            reference = statistics.median(_rate(one) for one in same)
            layouts[seen.zero_stage, seen.world_size].append(_rate(record) / reference)
    for (stage, world), shares in sorted(layouts.items()):
        yield (
            f"Under ZeRO-{stage} on {world} devices, a device did {statistics.median(shares):.0%} of what one alone "
            f"did at the same size ({len(shares)} runs)."
        )


def _alike(one: RunRecord, other: RunRecord) -> bool:
    ratio = one.planned.num_params_total / other.planned.num_params_total
    return abs(math.log(ratio)) < math.log(_ALIKE)


def _rate(record: RunRecord) -> float:
    assert record.observed is not None
    return record.observed.flops / (record.observed.seconds * record.observed.world_size)
