"""Attention that stays within documents: what a token sees, what that counts, and where it cannot be had."""

from __future__ import annotations

import itertools
import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flopsfit_ds.base.errors import DataError, SpecError
from flopsfit_ds.model.architecture import ModelShape
from flopsfit_ds.model.flops import training_flops_per_token
from flopsfit_ds.study.preparing import prepare_data
from flopsfit_ds.study.steps import _token_task, build_plan
from flopsfit_ds.train.model.cross_entropy import plain_losses
from flopsfit_ds.train.model.decoder import Decoder
from helpers.sweeps import MACHINE, MICRO, spec_of, with_values
from helpers.train.ranks import Bench, Layout

NUM_TOKENS, HELD, CONTEXT = 20_000, 1024, 16
LENGTHS = (1, 3, 5, 9, 14, 40)
TOKENS = {"source": "tokens", "path": "ids.bin", "dtype": "uint8", "heldout_tokens": HELD}
WITHIN = with_values(MICRO, data=TOKENS, model__attention_across_documents=False)
ODD = {"model__positions": "learned", "model__sliding_window": 6, "model__query_heads_per_kv_head": 2}


def ends_of_documents() -> np.ndarray:
    generator, ends = random.Random(0), [0]
    while ends[-1] < NUM_TOKENS:
        ends.append(min(ends[-1] + generator.choice(LENGTHS), NUM_TOKENS))
    return np.array(ends[1:])


ENDS = ends_of_documents()
IDS = np.random.default_rng(0).integers(0, 8, NUM_TOKENS).astype(np.uint8)


def write(folder: Path, ids: np.ndarray = IDS, ends: np.ndarray = ENDS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "ids.bin").write_bytes(ids.tobytes())
    (folder / "ids.ends").write_bytes(np.column_stack([ends, np.full_like(ends, -1)]).astype("<i8").tobytes())
    return folder


def plan_in(folder: Path, values: dict[str, Any] = WITHIN, **changes: Any) -> Any:
    spec = spec_of(with_values(values, **changes))
    return build_plan(spec, spec_folder=folder, machine=MACHINE)


def workload_in(folder: Path, **changes: Any) -> Any:
    plan = replace(plan_in(folder, **changes), folder=folder / "sweep")
    return _token_task(plan, plan.runs[0]).workload


def losses(workload: Any, batch: Any) -> torch.Tensor:
    torch.manual_seed(0)
    inputs, targets = batch
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs, None)
    with torch.no_grad():
        return plain_losses(Decoder(workload.shape)(inputs[0], document_starts=inputs[1]), targets)


@pytest.mark.parametrize("changes", [{}, ODD], ids=["plain", "odd"])
def test_a_document_s_loss_does_not_depend_on_the_one_before_it(tmp_path, changes):
    """Every second document is replaced by another; the losses within the others stay, to train on and held out."""
    document = np.searchsorted(ENDS, np.arange(NUM_TOKENS), side="right")
    replaced = np.where(document % 2 == 0, (IDS + 3) % 8, IDS).astype(np.uint8)
    across = {**changes, "model__attention_across_documents": True}
    kinds = {"within": changes, "across": across}
    found = {
        name: [
            workload_in(write(tmp_path / f"{name}-{number}", ids), **kinds[name])
            for number, ids in enumerate((IDS, replaced))
        ]
        for name in kinds
    }
    for what, first in (("training_batch", 0), ("heldout_batch", NUM_TOKENS - HELD)):
        numbers = np.arange(60)
        at = first + numbers[:, None] * CONTEXT + np.arange(CONTEXT)
        kept = (document[at] % 2 == 1) & (document[at + 1] == document[at])  # its target is of the same document
        assert kept.sum() > 100
        for name, same in (("within", True), ("across", False)):
            one, other = (losses(each, getattr(each, what)(numbers)) for each in found[name])
            difference = float((one - other).abs()[torch.from_numpy(kept)].max())
            assert (difference < 1e-6) == same, (what, name, difference)


def test_what_is_seen_is_all_of_the_own_document(tmp_path):
    """Each document alone gives the losses that it has among others."""
    workload = workload_in(write(tmp_path))
    (ids, starts), targets = batch = workload.training_batch(np.arange(20))
    found = losses(workload, batch)
    torch.manual_seed(0)
    model = Decoder(workload.shape)
    for row in range(20):
        bounds = [*sorted(set(starts[row].tolist())), CONTEXT]
        for begin, end in itertools.pairwise(bounds):
            with torch.no_grad():
                alone = plain_losses(model(ids[row : row + 1, begin:end]), targets[row : row + 1, begin:end])
            torch.testing.assert_close(alone[0], found[row, begin:end], rtol=1e-4, atol=1e-5)


def test_flops_count_what_a_query_may_see_in_all_that_is_trained_on(tmp_path):
    window = 6
    run = plan_in(write(tmp_path), model__sliding_window=window, model__sliding_window_pattern=["local", "global"],
                  model__width_per_layer=3).runs[0]  # fmt: skip
    shape = run.model
    assert isinstance(shape, ModelShape)
    assert shape.num_layers > 1
    document = np.searchsorted(ENDS, np.arange(NUM_TOKENS), side="right")
    rows = document[: (NUM_TOKENS - HELD) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    parts = (rows[:, :, None] == rows[:, None, :]).sum(-1)  # of each token, tokens of its document in its sequence
    seen = {window: np.minimum(parts, window).mean(), CONTEXT: parts.mean()}
    attention = 3 * 4 * shape.hidden_size * sum(seen[each] for each in shape.windows)
    across = training_flops_per_token(shape) - 3 * 4 * shape.hidden_size * sum(shape.windows)
    assert run.flops / run.num_tokens == pytest.approx(across + attention, rel=1e-12)
    assert seen[CONTEXT] < 0.7 * CONTEXT


def test_plans_say_what_is_seen_and_runs_are_others(tmp_path):
    within, across = (plan_in(write(tmp_path), model__attention_across_documents=across) for across in (False, True))
    told = [note for note in within.corpus.notes if "attention stays within documents" in note]
    assert len(told) == 1
    assert f"({len(ENDS):,} of {NUM_TOKENS / len(ENDS):,.0f} tokens on average)" in told[0]
    moved = ENDS.copy()
    moved[0] += 1
    others = plan_in(write(tmp_path / "moved", ends=np.unique(moved)))
    assert len({plan.runs[0].run_id for plan in (within, across, others)}) == 3
    assert across.runs[0].run_id == plan_in(tmp_path, with_values(MICRO, data=TOKENS)).runs[0].run_id


def test_megatron_s_documents_are_those_of_its_index(tmp_path):
    write(tmp_path)
    (tmp_path / "pair.bin").write_bytes(IDS.tobytes())
    sizes = np.diff(ENDS, prepend=0)
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 1, len(sizes), len(sizes) + 1)
    begins = np.concatenate([[0], ENDS[:-1]])
    bounds = np.arange(len(sizes) + 1)
    index = head + sizes.astype("<i4").tobytes() + begins.astype("<i8").tobytes() + bounds.astype("<i8").tobytes()
    (tmp_path / "pair.idx").write_bytes(index)
    pair = {"data": {"source": "megatron", "path": "pair", "heldout_tokens": HELD}}
    (_, starts), _ = workload_in(tmp_path, **pair).training_batch(np.arange(50))
    (_, expected), _ = workload_in(tmp_path).training_batch(np.arange(50))
    assert torch.equal(starts, expected)
    assert starts.max() > 0


def test_documents_that_are_not_known_yet_are_refused_until_they_are_prepared(tmp_path):
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcd ", k=generator.choice(LENGTHS) * 10)) for _ in range(300)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lines = {
        "data": {"source": "jsonl", "paths": ["lines.jsonl"], "heldout_tokens": HELD},
        "output_root": str(tmp_path),
    }
    with pytest.raises(DataError, match=r"data prepare SPEC model.attention_across_documents=true") as caught:
        plan_in(tmp_path, **lines)
    assert "\n" not in str(caught.value)
    prepare_data(plan_in(tmp_path, **lines, model__attention_across_documents=True))
    workload = workload_in(tmp_path, **lines)
    (_, starts), _ = workload.training_batch(np.arange(100))
    ends = np.cumsum([len(text) for text in texts])
    expected = ends[(ends > 0) & (ends < 100 * CONTEXT) & (ends % CONTEXT > 0)]
    rows, columns = np.nonzero((starts == torch.arange(CONTEXT)).numpy() & (np.arange(CONTEXT) > 0))
    assert np.array_equal(rows * CONTEXT + columns, expected)


@pytest.mark.parametrize(
    ("ends", "told"),
    [(None, "says nothing of them: use a source of documents"), (ENDS[:-1], "it is of another file"),
     (ENDS[::-1], "it is of another file")],
)  # fmt: skip
def test_files_without_ends_or_with_those_of_another_are_refused(tmp_path, ends, told):
    write(tmp_path, ends=ENDS if ends is None else ends)
    if ends is None:
        (tmp_path / "ids.ends").unlink()
    with pytest.raises(DataError, match=told):
        plan_in(tmp_path)


def test_models_of_transformers_are_refused_in_one_line():
    model = {"family": "hf", "architecture": "llama", "attention_across_documents": False}
    with pytest.raises(SpecError, match="attention_across_documents is of the built-in decoder") as caught:
        spec_of(with_values(MICRO, model=model))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_losses_are_the_same_on_all_layouts(tmp_path, server):
    short = with_values(WITHIN, design__points=[{"num_params": 6e3, "num_tokens": 2560}], **ODD)
    found = []
    for layout in (Layout(0, 1, 2), Layout(2, 2, 2), Layout(3, 2, 2)):
        folder = write(tmp_path / f"{layout.zero_stage}")
        bench = Bench(server, folder, layout)
        plan = replace(plan_in(folder, short), folder=folder / "sweep")
        bench.run, bench.workload = plan.runs[0], _token_task(plan, plan.runs[0]).workload  # pyright: ignore[reportAttributeAccessIssue]
        attempt = bench.finish()
        found.append([*attempt.losses, attempt.outcome["loss"]])
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)
