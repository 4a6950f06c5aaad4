"""Every field of a spec changes something: the plan, what workers are given, what the engine does, or the fit.

A field without an entry in the tables of `helpers.field_changes` fails the first test; a field whose entry changes
nothing fails the second.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import random
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from tokenizers import Tokenizer, models

import flopsfit_ds
from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.plan.ds_config import deepspeed_config
from flopsfit_ds.records import HeldoutLoss
from flopsfit_ds.spec import SweepSpec
from flopsfit_ds.spec import sections as spec_sections
from flopsfit_ds.study.steps import _token_task, build_plan, fit_records
from helpers.chunked import unpack_chunked
from helpers.documents import write_jsonl, write_llmc, write_megatron, write_saved
from helpers.field_changes import CLASS, FIT, NOT_FOR_FILES, PLAN, TAGS
from helpers.run_records import OBSERVED, RECORD
from helpers.sweeps import MACHINE, MICRO, spec_of, with_values, write_bytes_corpus


def all_fields() -> set[tuple[str, str]]:
    """Every (class, field) that can be reached from the spec, but fields that hold a section."""
    found, waiting, seen = set(), [SweepSpec], set()
    while waiting:
        model = waiting.pop()
        seen.add(model)
        for name, field in model.model_fields.items():
            inner = _models_in(field.annotation)
            waiting += [each for each in inner if each not in seen]
            if not inner or model is not SweepSpec:
                found.add((model.__name__, name))
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def execution_fields() -> set[tuple[str, str]]:
    return {("Execution", name) for name in spec_sections.Execution.model_fields}


def test_every_field_has_an_entry():
    covered = {(section, field) for section, fields in PLAN.items() for field in fields}
    covered |= {("Fit", field) for field in FIT} | execution_fields() | TAGS | NOT_FOR_FILES
    covered |= {("ClassModel", "approximate_flops"), ("HfModel", "approximate_flops"), ("SweepSpec", "trackers")}
    assert all_fields() == covered


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("data")
    write_bytes_corpus(base / "corpus.txt")
    write_bytes_corpus(base / "other.txt", 100_000)
    for name, count in (("ids.bin", 60_000), ("other.bin", 50_000)):
        (np.arange(count, dtype=np.uint16) % 200).tofile(base / name)
    config = {"model_type": "llama", "intermediate_size": 8192}
    (base / "llama.json").write_text(json.dumps(config))
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(base / "tok.json"))
    for name, words in (("lines.jsonl", "a b"), ("other.jsonl", "c d")):
        write_jsonl(base / name, [{"text": words, "title": words}] * 500)
    for folder, words in (("saved", "a b"), ("other", "c d")):
        write_saved(base / folder, {"train": [words], "test": [words * 2]})
    for number, name in enumerate(("pair", "other-pair")):
        write_megatron(base / name, [np.arange(200, dtype=np.uint16)] * (300 + number))
    unpack_chunked(base / "chunked")
    for number in (1, 2):
        write_llmc(base / f"shard-{number}.bin", np.arange(60_000) % (100 * number))
    return base


def consumed(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All that leaves the planner: the plan without the spec's text, DeepSpeed's configuration, the workers' task."""
    spec = spec_of(values)
    plan = build_plan(spec, spec_folder=folder, allow_import=("helpers",), machine=MACHINE)
    result = plan.to_json_dict()
    del result["spec"]
    strategy = plan.runs[0].placement.strategy
    result["deepspeed"] = deepspeed_config(
        plan.runs[0],
        zero_stage=strategy.zero_stage,
        offload=strategy.offload,
        world_size=strategy.num_gpus,
        micro_batch_size_per_gpu=strategy.micro_batch_size_per_gpu,
        gradient_accumulation_steps=plan.runs[0].placement.gradient_accumulation_steps,
    )
    if plan.corpus.fingerprint != "absent" and plan.corpus.source == "text" and plan.corpus.tokenizer is None:
        plan = dataclasses.replace(plan, folder=folder / "sweep")
        task = _token_task(plan, plan.runs[0])
        result["task"] = repr(
            (task.checkpoint_every_seconds, task.peak_flops, task.compiled, task.data_workers, task.workload)
        )
    return result


@pytest.mark.parametrize(
    ("section", "field"), [(section, field) for section, fields in PLAN.items() for field in fields], ids=str
)
def test_a_field_changes_what_leaves_the_planner(section, field, folder):
    base, change = PLAN[section][field]
    before, after = consumed(base, folder), consumed(with_values(base, **change), folder)
    assert json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True)


def test_six_n_d_for_a_class_takes_consent(folder):
    values = with_values(CLASS, model__class_path="helpers.class_models:PeekingBigram")
    with pytest.raises(PlanError, match=r"model\.approximate_flops: true"):
        consumed(values, folder)
    accepted = consumed(with_values(values, model__approximate_flops=True), folder)
    assert {run["flops_source"] for run in accepted["runs"]} == {"6nd"}
    assert any("FLOPs are 6 N D, as accepted" in warning for warning in accepted["warnings"])


def records_of_a_law() -> list[Any]:
    """Twenty records that lie near a law, with total and non-embedding sizes that differ."""
    generator, records = random.Random(0), []
    for budget in (1e15, 1e16, 1e17, 1e18):
        for step in range(5):
            size = round((budget / 120) ** 0.5 * 2 ** (step - 2))
            tokens = round(budget / 6 / size)
            loss = 1.7 + 400 / size**0.34 + 410 / tokens**0.28 + generator.gauss(0, 0.005)
            planned = dataclasses.replace(
                RECORD.planned, num_params_total=size, num_params_non_embedding=round(size * 0.7 - step * 1000),
                num_params_trainable=size, num_tokens=tokens, flops=budget,
            )  # fmt: skip
            observed = dataclasses.replace(
                OBSERVED, num_params_total=size, num_params_trainable=size, num_tokens=tokens, flops=budget
            )
            prose = HeldoutLoss(loss + 0.1 * (size / 1e6) ** -0.1, 0.005, 1000, None)
            records.append(
                dataclasses.replace(
                    RECORD, run_id=f"{len(records):012x}", loss=loss, loss_standard_error=0.005, unique_tokens=10**13,
                    compute_budget_flops=budget, planned=planned, observed=observed, heldout={"prose": prose},
                )
            )  # fmt: skip
    return records


@pytest.fixture(scope="module")
def fitted():
    known: dict[str, str] = {}

    def fit(**options: Any) -> str:
        prose = {"prose": {"source": "text", "paths": ["prose.txt"]}}
        values = with_values(MICRO, heldout=prose, fit={"bootstrap_samples": 40, "bootstrap": "points", **options})
        key = json.dumps(values["fit"], sort_keys=True)
        if key not in known:
            result = fit_records(records_of_a_law(), spec_of(values)).to_json_dict()
            for echo in ("options", "inputs_hash"):
                result.pop(echo, None)
            known[key] = json.dumps(_without_echo(result, set(spec_sections.Fit.model_fields)), sort_keys=True)
        return known[key]

    return fit


def _without_echo(value: Any, names: set[str]) -> Any:
    """The numbers of a fit, without its copies of what it was asked."""
    if isinstance(value, dict):
        return {key: _without_echo(inner, names) for key, inner in value.items() if key not in names}
    if isinstance(value, list):
        return [_without_echo(inner, names) for inner in value]
    return value


@pytest.mark.parametrize("field", sorted(FIT))
def test_a_field_changes_the_fit(field, fitted):
    assert fitted(**{field: FIT[field]}) != fitted()


@pytest.mark.parametrize("field", sorted(spec_sections.Execution.model_fields))
def test_a_field_of_execution_is_read_by_the_engine(field):
    """What the engine makes of it is shown by the engine's own tests; here, that it is read at all."""
    read = set()
    for path in (Path(flopsfit_ds.__file__).parent / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if owner == "execution":
                    read.add(node.attr)
    assert field in read
