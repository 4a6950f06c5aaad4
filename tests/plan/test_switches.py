"""What is switched on for a whole sweep: the compiler, which changes no identity, and TF32, which does."""

from __future__ import annotations

import pytest

from flopsfit_ds.base.errors import PlanError
from flopsfit_ds.plan.recipe.switches import check_switches, compiles
from flopsfit_ds.spec import parse_spec
from helpers.sweeps import MICRO, plan_of, spec_of, with_values


def test_the_words_of_yaml_switch_it_and_a_cpu_compiles_only_when_asked(tmp_path):
    for word, expected in (("on", True), ("off", False), ("auto", False)):
        spec = parse_spec(f"name: a\ndesign: {{compute_budgets: [1e18]}}\ntraining: {{compile: {word}}}\n")
        assert spec.training.compile == word
        (tmp_path / "corpus.txt").write_bytes(b"many words " * 2000)
        assert compiles(spec_of(with_values(MICRO, training__compile=word)), "cpu") is expected
    gpu = with_values(MICRO, hardware={"device": "H100-SXM", "gpus_per_node": 1})
    plans = [plan_of(with_values(gpu, training__compile=word), tmp_path) for word in ("auto", "off")]
    assert [compiles(plan.spec, plan.cluster.device_name) for plan in plans] == [True, False]
    assert plans[0].runs[0].run_id == plans[1].runs[0].run_id


def test_a_model_of_transformers_is_compiled_only_when_asked():
    model = {"family": "hf", "architecture": "llama", "vocab_size": 256, "context_length": 16}
    for word, expected in (("on", True), ("auto", False)):
        spec = spec_of(with_values(MICRO, model=model, training__compile=word))
        check_switches(spec, "H100-SXM")
        assert compiles(spec, "H100-SXM") is expected


def test_a_class_of_the_users_is_refused():
    model = {"family": "class", "class_path": "a:B", "size_parameter": "width", "context_length": 16}
    with pytest.raises(PlanError, match=r"training\.compile: on .* a:B"):
        check_switches(spec_of(with_values(MICRO, model=model, training__compile="on")), "cpu")


def test_tf32_is_another_run_and_a_faster_device(tmp_path):
    (tmp_path / "corpus.txt").write_bytes(b"many words " * 2000)
    gpu = with_values(MICRO, hardware={"device": "H100-SXM", "gpus_per_node": 1})
    plain, switched = (plan_of(with_values(gpu, training__tf32=value), tmp_path) for value in (False, True))
    assert plain.runs[0].run_id == plan_of(gpu, tmp_path).runs[0].run_id != switched.runs[0].run_id
    assert plain.cluster.peak_flops < switched.cluster.peak_flops < 989e12
    assert switched.runs[0].recipe.tf32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training__precision": "bf16"}, "tf32: true beside precision: bf16.*write precision: fp32"),
        ({}, "tf32: true on a CPU.*leave it out"),
    ],
)
def test_tf32_is_refused_where_it_says_nothing(tmp_path, changes, words):
    (tmp_path / "corpus.txt").write_bytes(b"many words " * 2000)
    with pytest.raises(PlanError, match=words):
        plan_of(with_values(MICRO, training__tf32=True, **changes), tmp_path)


def test_runs_placed_with_offload_are_said_not_to_be_compiled(tmp_path):
    (tmp_path / "corpus.txt").write_bytes(b"many words " * 2000)
    points = [{"num_params": size, "num_tokens": 1e9} for size in (1e8, 7e9)]
    values = with_values(
        MICRO,
        model={"vocab_size": 256, "context_length": 256},
        design={"method": "points", "points": points},
        training__global_batch_tokens=2**17,
        training__precision="bf16",
        hardware={"device": "H100-SXM", "gpus_per_node": 1, "host_memory": "1TiB"},
        placement={"offload": "allowed"},
    )

    def planned(word):
        return plan_of(with_values(values, training__compile=word), tmp_path)

    plan = planned("on")
    small, large = plan.runs
    assert [run.placement.strategy.offload for run in plan.runs] == ["none", "optimizer"]
    (said,) = [warning for warning in plan.warnings if "training.compile" in warning]
    assert large.label in said
    assert small.label not in said
    assert "offload" in said
    for word in ("auto", "off"):
        assert not [warning for warning in planned(word).warnings if "training.compile" in warning], word
