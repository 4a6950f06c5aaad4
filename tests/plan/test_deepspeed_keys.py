"""A user's own keys of DeepSpeed's, and what crosses between GPUs."""

from __future__ import annotations

import json
import re

import pytest

from flopsfit_ds.base.errors import FlopsfitError, PlanError
from flopsfit_ds.cli.planning.plan import print_plan
from flopsfit_ds.memory.buckets import training_buckets
from flopsfit_ds.plan.ds_config import deepspeed_config
from flopsfit_ds.study.probes import deepspeed_keys
from flopsfit_ds.study.steps import build_plan
from helpers.sweeps import MACHINE, MICRO, plan_of, spec_of, with_values, write_bytes_corpus

KEYS = {"zero_optimization": {"reduce_bucket_size": 4096, "round_robin_gradients": True}, "wall_clock_breakdown": True}
GPUS = with_values(
    MICRO,
    model={"vocab_size": 32000, "context_length": 1024},
    data={},
    design={"method": "points", "points": [{"num_params": 5e9, "num_tokens": 1e9}]},
    training={"global_batch_tokens": 2**19, "precision": "bf16"},
    hardware={"device": "H100-SXM", "gpus_per_node": 8},
    placement={"num_gpus": [8], "zero_stages": [3]},
)


@pytest.fixture
def folder(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt", 20_000)
    return tmp_path


def config_of(run):
    strategy = run.placement.strategy
    return deepspeed_config(
        run,
        zero_stage=2,
        offload="none",
        world_size=strategy.num_gpus,
        micro_batch_size_per_gpu=strategy.micro_batch_size_per_gpu,
        gradient_accumulation_steps=run.placement.gradient_accumulation_steps,
    )


def test_a_users_keys_come_last_and_are_part_of_the_identity(folder):
    (plain,), (own,) = (
        plan_of(with_values(MICRO, placement=each), folder).runs for each in (None, {"deepspeed": KEYS})
    )
    assert own.run_id != plain.run_id == plan_of(with_values(MICRO, placement={"deepspeed": {}}), folder).runs[0].run_id
    before, after = config_of(plain), config_of(own)
    assert after["zero_optimization"] == before["zero_optimization"] | KEYS["zero_optimization"]
    assert after["wall_clock_breakdown"] is True
    assert {key: after[key] for key in before if key not in KEYS} == {k: v for k, v in before.items() if k not in KEYS}


def test_the_estimate_knows_a_users_buckets():
    own = json.dumps({"zero_optimization": {"reduce_bucket_size": 200_000_000, "overlap_comm": True}})
    large, usual = (training_buckets(2, "none", 10**9, 10**9, keys) for keys in (own, ""))
    assert (large.reduce_bucket_size, usual.reduce_bucket_size) == (200_000_000, 50_000_000)
    needs = []
    for keys in ({}, {"zero_optimization": {"reduce_bucket_size": 2_000_000_000}}):
        (run,) = plan_of(with_values(GPUS, placement__deepspeed=keys, placement__max_micro_batch_size_per_gpu=1)).runs
        needs.append(run.placement.memory.peak_allocated_bytes)
    assert needs[1] > needs[0] + 4 * 10**9


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"zero_optimizaton": {}}, r"zero_optimizaton: .*knows no such key \(did you mean zero_optimization\?\)"),
        ({"wall_clock_breakdwn": True}, r"did you mean wall_clock_breakdown\?"),
        ({"zero_optimization": {"reduce_bucket_sise": 5}}, r"zero_optimization\.reduce_bucket_sise: .*no such key"),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, r"reduce_bucket_size: found -5; DeepSpeed says"),
        ({"zero_optimization": {"stage": 2}}, r"stage: this is said by placement\.zero_stages"),
        ({"bf16": {"enabled": True}}, r"bf16: this is said by training\.precision"),
        ({"train_batch_size": 8}, r"train_batch_size: this is said by training\.global_batch_tokens"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "not taken here, since it changes what is trained"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "not taken here, since it changes what is trained"),
    ],
)
def test_what_is_misspelt_or_changes_what_is_trained_is_refused(folder, keys, words):
    with pytest.raises(FlopsfitError, match=words):
        build_plan(spec_of(with_values(MICRO, placement={"deepspeed": keys})), spec_folder=folder, machine=MACHINE)


def test_all_keys_that_are_taken_are_known_to_the_installed_library():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.items()
    assert {name for field, info in fields for name in (field, info.alias)} >= deepspeed_keys._OF_ZERO


def test_communication_in_bf16_is_another_run_with_less_to_send():
    plans = [plan_of(with_values(GPUS, placement__communication=kind)) for kind in ("fp32", "bf16")]
    (wide,), (narrow,) = (plan.runs for plan in plans)
    assert plan_of(GPUS).runs[0].run_id == wide.run_id != narrow.run_id
    assert narrow.placement.predicted_step_seconds < wide.placement.predicted_step_seconds
    assert config_of(wide)["torch_autocast"]["lower_precision_safe_modules"] == []
    assert "torch.nn.Linear" in config_of(narrow)["torch_autocast"]["lower_precision_safe_modules"]
    with pytest.raises(PlanError, match=r"communication: bf16 beside precision: fp32; write precision: bf16"):
        plan_of(with_values(GPUS, training__precision="fp32", placement__communication="bf16"))


def test_compiling_what_is_offloaded_is_refused():
    changes = {"training__compile": "on", "placement__offload": "always", "placement__zero_stages": [3]}
    with pytest.raises(PlanError, match=r"compile: on beside placement\.offload: always.*write compile: off"):
        plan_of(with_values(GPUS, **changes))


def test_a_plan_on_several_gpus_says_what_either_communication_takes(capsys):
    print_plan(plan_of(GPUS))
    said = " ".join(capsys.readouterr().out.split())
    found = re.search(r"runs take (\S+) GPU-hours in fp32 and (\S+) in bf16; this plan is in fp32", said)
    assert found is not None
    assert float(found[1]) > float(found[2])
    print_plan(plan_of(with_values(GPUS, placement={"num_gpus": [1]}, design={"compute_budgets": [1e17]})))
    assert "GPU-hours in fp32" not in capsys.readouterr().out
