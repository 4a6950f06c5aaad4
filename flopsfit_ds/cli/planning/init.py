"""`init`: a commented spec from a few questions, or from flags alone; it ends with the plan and its price."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flopsfit_ds.base.errors import SpecError
from flopsfit_ds.base.hardware import read_machine
from flopsfit_ds.base.storage import KIND_WORDS, kind_of
from flopsfit_ds.cli.options import quantity, write_text
from flopsfit_ds.cli.prose import say

_BELOW_TARGET = (3000.0, 1000.0, 300.0)
"""Budgets of the sweep below the target, as many as a back-test needs; together .5% of its compute, a size."""
_BELOW_SMALL_TARGET = (100.0, 40.0, 16.0)
"""Those of the quickstart: models of bytes have no smaller sizes."""
_SMALL_RATE = "{rule: custom, reference: {learning_rate: 7.5e-3, num_params: 40k}, params_exponent: -0.333}"
"""That of the quickstart, found on such models: published rules start at sizes a thousand times theirs."""
_SIZES = 5
_TOKENS = (".bin", ".npy")
_DOCUMENTS = {".jsonl": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}
"""Endings of files of documents, and the source that reads them; others hold plain text."""
_NAME = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class Answers:
    """What the spec is made of.

    Attributes:
        name: Of the sweep.
        data: `python-stdlib`, a file of tokens or a file of text.
        tokenizer: A tokenizer.json, for text; bytes without it.
        device: Of the table, `auto` or `cpu`.
        gpus: Devices of a node; None for what there is.
        price: Of a GPU-hour; None where there is none.
        target: FLOPs of the run to be planned.
        shape: What is known of the model, by field of the spec.
    """

    name: str
    data: str
    tokenizer: str | None
    device: str
    gpus: int | None
    price: float | None
    target: float
    shape: dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init_command)


def init_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The spec to write; never one that exists.")] = Path(
        "spec.yaml"
    ),
    name: Annotated[str | None, typer.Option(help="Of the sweep and of its folder in outputs/.")] = None,
    data: Annotated[
        str | None, typer.Option(help="`python-stdlib`, a file of tokens (.bin, .npy), or a file of text.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json, for text; bytes without it.")] = None,
    from_hf: Annotated[
        Path | None, typer.Option(help="A Hugging Face config.json, or the folder that holds it: the model's shape.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(min=2, help="Token ids; 256 for bytes.")] = None,
    device: Annotated[str | None, typer.Option(help="A GPU that `flopsfit-ds hardware` lists, cpu or auto.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of a node.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU-hour, in any currency.")] = None,
    target: Annotated[str | None, typer.Option(help="FLOPs of the run that is to be planned, such as 1e22.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: what no flag says is left at its default.")] = False,
) -> None:
    """Write a commented spec from a few questions, or from flags alone, and show its plan and price.

    Example: flopsfit-ds init --data train.bin --vocab-size 50304 --device H100-SXM --target 1e22 --yes
    """
    from flopsfit_ds.spec import parse_spec

    if output.exists():
        raise SpecError(f"--output {output}: exists already; name another file, or move it away")
    shape = {} if from_hf is None else shape_of_config(from_hf)
    ask = _Questions(asks=sys.stdin.isatty() and not yes)
    has_gpu = read_machine().device_name != "cpu"
    data = data or ask("The data: python-stdlib, a file of tokens (.bin, .npy) or of text", "python-stdlib")
    is_tokens = Path(data).suffix in _TOKENS
    if vocab_size is None and "vocab_size" not in shape and (is_tokens or tokenizer):
        vocab_size = int(quantity(ask("Token ids of its vocabulary", "50304"), "--vocab-size"))
    shape |= {"vocab_size": vocab_size} if vocab_size is not None else {}
    device = device or ask("The device: a GPU of `flopsfit-ds hardware`, cpu, or auto for this machine's", "auto")
    small = device == "cpu" or (device == "auto" and not has_gpu)
    target = target or ask("FLOPs of the run that is to be planned", "1e13" if small else "1e22")
    if price is None and not small:
        price = quantity(ask("Price of a GPU-hour, 0 for none", "0"), "--price") or None
    chosen = name or _NAME.sub("-", Path(data).stem.lower()).strip("-.")[:64] or "study"
    answers = Answers(chosen, data, tokenizer, device, gpus, price, quantity(target, "--target"), shape)
    text = spec_text(answers, small=small)
    parse_spec(text, name=f"{output} (not written)")
    write_text(output, text)
    say(f"wrote {output}")
    _show_plan(output)


@dataclass(frozen=True)
class _Questions:
    asks: bool

    def __call__(self, question: str, default: str) -> str:
        return typer.prompt(question, default=default) if self.asks else default


def _show_plan(path: Path) -> None:
    from flopsfit_ds.base.errors import DataError, PlanError
    from flopsfit_ds.cli.options import plan_from
    from flopsfit_ds.cli.planning.plan import print_plan

    try:
        print_plan(plan_from(str(path), None, None))
    except (DataError, PlanError) as error:
        say(f"it cannot be planned yet: {error}")
        say(f"change {path}, then: flopsfit-ds plan {path}")
    else:
        say(f"next: flopsfit-ds preview {path}, what it will tell; flopsfit-ds sweep {path}, train it")


def shape_of_config(path: Path) -> dict[str, Any]:
    """The fields of `model` that a Hugging Face config says: vocabulary, heads, widths; sizes are the sweep's.

    Raises:
        SpecError: It cannot be read, or names no decoder with attention heads.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        inner, vocabulary = int(config["intermediate_size"]), int(config["vocab_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or width // heads)
        per_layer, ratio, shared = round(width / layers, 2), round(inner / width, 4), heads // kv_heads
    except OSError as error:
        raise SpecError(f"--from-hf {path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        kind = kind_of(path)
        found = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SpecError(
            f"--from-hf {path}: no config of a decoder: it needs hidden_size, num_hidden_layers, num_attention_heads, "
            f"intermediate_size and vocab_size as numbers ({found if kind is None else f'it is {KIND_WORDS[kind]}'})"
        ) from error
    return {
        "vocab_size": vocabulary,
        "context_length": min(int(config.get("max_position_embeddings") or 2048), 2048),
        "head_dim": head_dim,
        "width_per_layer": per_layer,
        "mlp_ratio": ratio,
        "query_heads_per_kv_head": shared,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def spec_text(answers: Answers, *, small: bool) -> str:
    """The spec, a comment a line where a reader may want to change it.

    Args:
        answers: What was asked.
        small: For a CPU: a model of bytes that trains in minutes.
    """
    model = {
        "vocab_size": 256,
        "context_length": 64 if small else 2048,
        "head_dim": 12 if small else 128,
        "width_per_layer": 24 if small else 96,
        "tied_embeddings": small,
    } | answers.shape
    budgets = ", ".join(f"{answers.target / below:.3g}" for below in (_BELOW_SMALL_TARGET if small else _BELOW_TARGET))
    batch = "global_batch_tokens: 1024" if small else "global_batch: {rule: steplaw}"
    rate = _SMALL_RATE if small else "{rule: steplaw}"
    lines = [
        "# A scaling study; every field: flopsfit-ds schema, or the page `The spec` of the documentation.",
        f"name: {json.dumps(answers.name)}  # its folder is outputs/NAME",
        "model:  # sizes are chosen by the design; this says what all of them have in common",
        *(f"  {key}: {json.dumps(value)}" for key, value in model.items()),
        "data:",
        *(f"  {line}" for line in _data_lines(answers, small)),
        "design:",
        "  method: isoflop  # several sizes at each compute budget; ladder and points are the others",
        f"  compute_budgets: [{budgets}]  # FLOPs of one run; more below the target make the law surer",
        f"  sizes_per_budget: {_SIZES}",
        "training:",
        f"  {batch}  # tokens an optimiser step; by a published rule of tokens, or a number",
        f"  learning_rate: {rate}  # by a rule of size and tokens; learning_rates: [1e-3] fixes it",
        f"  precision: {'fp32' if small else 'bf16'}  # bf16 is autocast over fp32 parameters",
        "hardware:",
        f"  device: {json.dumps(answers.device)}  # auto is this machine",
        *([f"  gpus_per_node: {answers.gpus}"] if answers.gpus is not None else []),
        *([f"  price_per_gpu_hour: {answers.price:g}"] if answers.price is not None else []),
        "fit:",
        f"  target_compute: {answers.target:g}  # FLOPs of the run that is to be planned",
    ]
    return "\n".join(lines) + "\n"


def _data_lines(answers: Answers, small: bool) -> list[str]:
    heldout = "heldout_tokens: 128k" if small else "heldout_tokens: 4M"
    heldout += "  # never trained on; the loss of a run is measured on them"
    if answers.data == "python-stdlib":
        return ["source: python-stdlib  # bytes of Python's own library, on every machine", heldout]
    if Path(answers.data).suffix in _TOKENS:
        later = "# num_tokens: 10B  # lets the sweep be planned before the file exists"
        return ["source: tokens", f"path: {json.dumps(answers.data)}  # relative to this file", later, heldout]
    told = [] if answers.tokenizer is None else [f"tokenizer: {json.dumps(answers.tokenizer)}"]
    paths = f"paths: [{json.dumps(answers.data)}]  # files, folders or patterns, relative to this file"
    return [f"source: {_DOCUMENTS.get(Path(answers.data).suffix, 'text')}", paths, *told, heldout]
