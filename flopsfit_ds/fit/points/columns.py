"""Which column of a table holds what: the spellings in use, and numbers as people write them."""

import re
from collections.abc import Mapping, Sequence

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.base.units import parse_quantity

SPELLINGS: dict[str, tuple[str, ...]] = {
    "num_params": (
        "n", "params", "parameters", "num_params", "n_params", "nparams", "num_parameters", "n_parameters",
        "model_size", "model_params", "model_parameters", "size", "param_count", "parameter_count",
        "total_params", "num_params_total",
        "observed_num_params_total", "planned_num_params_total",
    ),
    "num_tokens": (
        "d", "tokens", "num_tokens", "n_tokens", "ntokens", "train_tokens", "training_tokens", "total_tokens",
        "dataset_size", "data_size", "training_data", "token_count", "tokens_seen", "num_train_tokens",
        "observed_num_tokens", "planned_num_tokens",
    ),
    "flops": (
        "c", "flops", "flop", "compute", "training_flop", "training_flops", "train_flops", "train_flop", "total_flops",
        "total_flop", "training_compute", "observed_flops", "planned_flops",
    ),
    "loss": (
        "l", "loss", "final_loss", "val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss",
        "held_out_loss", "heldout_loss", "nll", "cross_entropy",
    ),
    "seed": ("seed", "random_seed"),
    "learning_rate": ("lr", "learning_rate", "peak_lr", "max_lr", "peak_learning_rate", "max_learning_rate"),
    "label": ("label", "name", "run_name", "model_name"),
    "run_id": ("run_id", "id", "run"),
    "unique_tokens": ("unique_tokens", "u", "num_unique_tokens", "unique_data"),
    "compute_budget_flops": ("compute_budget_flops", "compute_budget", "budget", "isoflop", "flop_budget"),
    "loss_standard_error": ("loss_standard_error", "loss_se", "loss_stderr", "loss_sem"),
    "trunk": ("trunk", "trunk_id", "parent_run", "parent_run_id", "branched_from"),
    "schedule": (
        "schedule", "lr_schedule", "learning_rate_schedule", "lr_scheduler", "lr_scheduler_type", "lr_decay_style",
    ),
    "global_batch": (
        "global_batch", "global_batch_size", "global_batch_tokens", "global_batch_sequences", "global_batch_samples",
        "batch_size", "batch_tokens", "batch_size_tokens", "batch_size_in_tokens", "batch_sequences", "batch_samples",
        "tokens_per_batch", "tokens_per_step", "tokens_per_update", "sequences_per_batch", "sequences_per_step",
        "effective_batch_size", "total_batch_size", "train_batch_size", "training_batch_size", "gbs", "bs", "bsz",
    ),
    "status": ("status", "state"),
    "reason": ("reason",),
}  # fmt: skip
_ANY_WILL_DO = ("global_batch",)
"""What is only compared with itself: it may stand in a table twice, in two units."""
_MEASURED_FIRST = ("observed_", "planned_")
_SEPARATORS = re.compile(r"[/.:]+")
_ANY_GROUP = frozenset((
    "config", "cfg", "args", "hparams", "hyperparameters", "params", "parameters", "metrics", "summary", "run", "final",
))  # fmt: skip
_TRAINING = frozenset(("train", "training", "trainer", "optim", "optimizer", "optimiser"))
_GROUPS: dict[str, frozenset[str]] = {
    "num_params": frozenset(("model", "network", "architecture", "arch")),
    "num_tokens": _TRAINING | {"data", "dataset"},
    "flops": _TRAINING | {"compute"},
    "loss": frozenset(("eval", "evaluation", "val", "valid", "validation", "test", "heldout", "held_out")),
    "seed": _TRAINING,
    "learning_rate": frozenset(("optim", "optimizer", "optimiser")),
    "global_batch": _TRAINING | {"data", "dataset", "dataloader"},
}
"""Groups that trackers put before a name, as in `model/n_params`. A group that is not here decides: `train/loss` is no
held-out loss, `eval/tokens` are not what a run was trained on, `train/learning_rate` is that of its last step."""


def normalise(name: str) -> str:
    """A column name as it is compared: lower case, words joined by one underscore, units in brackets left out."""
    bare = re.sub(r"[\(\[].*?[\)\]]", "", name)
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")


def _is_grouped(column: str, quantity: str) -> bool:
    """Whether a column is a spelling of the quantity once the groups before it are taken off: `config.model/n_params`.

    Single letters stand for too much in a group, and are not looked for.
    """
    groups = _ANY_GROUP | _GROUPS.get(quantity, frozenset())
    parts = [normalise(part) for part in _SEPARATORS.split(_BRACKETS.sub("", column))]
    for taken in range(1, len(parts)):
        if parts[taken - 1] not in groups:
            return False
        rest = "_".join(parts[taken:])
        if len(rest) > 1 and rest in SPELLINGS[quantity]:
            return True
    return False


_BRACKETS = re.compile(r"[\(\[](.*?)[\)\]]")
_SCALES = {
    "k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "mm": 1e6, "million": 1e6, "millions": 1e6,
    "b": 1e9, "bn": 1e9, "g": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "trillion": 1e12, "trillions": 1e12,
}  # fmt: skip
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}  # SI
_UNIT_WORDS = frozenset((
    "flop", "flops", "floating", "point", "operations", "token", "tokens", "param", "params", "parameter",
    "parameters", "total", "training", "n", "d", "c", "6", "6nd", "count", "number", "of", "nominal", "trainable",
    "with", "without", "incl", "excl", "including", "excluding", "non", "embedding", "embeddings",
))  # fmt: skip
_SCALED = ("num_params", "num_tokens", "flops", "unique_tokens", "compute_budget_flops")


def unit_of(column: str, quantity: str) -> float:
    """The factor that the bracketed unit of a column's name asks for: `Params (M)` holds millions.

    Args:
        column: As the table spells it.
        quantity: What it holds; losses and names have no factor.

    Raises:
        DataError: A unit of parameters, tokens or FLOPs that is not known.
    """
    if quantity not in _SCALED:
        return 1.0
    factor = 1.0
    for unit in _BRACKETS.findall(column):
        for word in re.findall(r"[a-z0-9^]+", unit.lower()):
            scale = _scale_of(word)
            if scale is None:
                raise DataError(
                    f"column {column!r}: unknown unit {unit!r}; write k, M, B or T in brackets, or nothing, and plain "
                    "FLOPs for compute"
                )
            factor *= scale
    return factor


def _scale_of(word: str) -> float | None:
    """What one word of a unit multiplies by; None for a word that is not known."""
    if word in _SCALES:
        return _SCALES[word]
    if word in _UNIT_WORDS:
        return 1.0
    prefixed = re.fullmatch(r"([kmgtpezy]?)flops?", word)
    if prefixed is not None:
        return _PREFIXES[prefixed[1]]
    power = re.fullmatch(r"10\^(\d{1,2})|1e(\d{1,2})", word)
    return None if power is None else 10.0 ** int(power[1] or power[2])


def match_columns(header: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Find the column of each quantity.

    A column's whole name counts before its name without the groups of a tracker (`model/n_params`).

    Args:
        header: Column names of the table.
        named: Quantity -> column, for columns that the user named; these win over spellings.

    Returns:
        Quantity -> column name, for the quantities that were found.

    Raises:
        DataError: A named column that is not there, or two columns for one quantity.
    """
    found: dict[str, str] = {}
    taken = set(named.values())
    known = {column for column in header if any(normalise(column) in spelt for spelt in SPELLINGS.values())}
    for quantity, column in named.items():
        if quantity not in SPELLINGS:
            raise DataError(f"unknown quantity {quantity!r}: choose one of {', '.join(SPELLINGS)}")
        if column not in header:
            raise DataError(f"no column {column!r} for {quantity}; the columns are {', '.join(header)}")
        found[quantity] = column
    for quantity, spellings in SPELLINGS.items():
        if quantity in found:
            continue
        hits = [column for column in header if column not in taken and normalise(column) in spellings]
        if len(hits) > 1:
            hits = _prefer_measured(hits)
        if not hits and quantity in _GROUPS:
            hits = [column for column in header if column not in taken | known and _is_grouped(column, quantity)]
        if quantity in _ANY_WILL_DO:  # in samples and in tokens
            order = {spelling: number for number, spelling in enumerate(spellings)}
            hits = sorted(hits, key=lambda column: order.get(normalise(column), len(order)))[:1]
        if len(hits) > 1:
            flag = "--" + quantity.replace("_", "-") + "-column"
            raise DataError(f"columns {', '.join(hits)} could all be {quantity}: choose with {flag}")
        if hits:
            found[quantity] = hits[0]
    return found


def _prefer_measured(hits: list[str]) -> list[str]:
    """Of a planned and an observed column of one quantity, the observed one."""
    if all(normalise(column).startswith(_MEASURED_FIRST) for column in hits):
        observed = [column for column in hits if normalise(column).startswith(_MEASURED_FIRST[0])]
        return observed or hits
    return hits


_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
"""Thousands parted by commas, as `35,000,000`; one comma before two digits or four is no such number."""


def read_number(value: object) -> float | None:
    """A number as a table holds it, None for an empty cell.

    Raises:
        ValueError: Text that is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError("a whole number beyond 1e308") from error
    text = str(value).strip()
    if text == "":
        return None
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        return parse_quantity(text)
