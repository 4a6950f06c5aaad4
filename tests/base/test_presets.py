"""The shipped files: DeepSpeed's own classes accept every one, every sweep plans, and all of it is in the wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from flopsfit_ds.base.presets import deepspeed_preset, preset_folder, shipped_specs, zero_section
from flopsfit_ds.plan.ds_config import deepspeed_config
from flopsfit_ds.plan.sweep_plan import build_plan
from flopsfit_ds.records import SweepFolder
from flopsfit_ds.spec import load_spec
from helpers.sweeps import MACHINE, MICRO, with_values, write_bytes_corpus

PROJECT = Path(__file__).resolve().parents[2]
SPECS = sorted(shipped_specs())
DEEPSPEED_FILES = sorted(path.name for path in preset_folder().glob("zero*.json"))
SHORT = [{"num_params": 6e3, "num_tokens": 1280}]
LAYOUTS = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (3, "optimizer")]


def test_the_promised_files_are_there():
    assert {"quickstart", "cpu_zero", "isoflop_8xh100", "ladder_multinode"} <= set(SPECS)
    promised = {f"zero{stage}.json" for stage in range(4)} | {"zero3_offload.json"}
    assert promised <= set(DEEPSPEED_FILES)
    assert len(list(preset_folder().glob("accelerate_*.yaml"))) >= 3


@pytest.mark.parametrize("name", SPECS)
def test_a_shipped_spec_loads_and_plans(name):
    path = shipped_specs()[name]
    plan = build_plan(load_spec(path), spec_folder=path.parent, machine=MACHINE)
    assert plan.runs
    for run in plan.runs:
        if run.compute_budget_flops is not None:
            assert run.flops == pytest.approx(run.compute_budget_flops, rel=0.005)
        assert run.placement.memory.device_total_bytes <= plan.cluster.device_memory_bytes
        assert not any("only" in warning and "steps" in warning for warning in plan.warnings)


def test_the_declared_memory_of_cpu_zero_makes_the_planner_choose_stages_0_2_and_3():
    path = shipped_specs()["cpu_zero"]
    plan = build_plan(load_spec(path), spec_folder=path.parent, machine=MACHINE)
    assert {run.placement.strategy.zero_stage for run in plan.runs} == {0, 2, 3}


def test_the_isoflop_study_of_a_node_goes_from_77_million_to_6_billion_and_repeats_no_data():
    path = shipped_specs()["isoflop_8xh100"]
    plan = build_plan(load_spec(path), spec_folder=path.parent, machine=MACHINE)
    sizes = [run.num_params_total for run in plan.runs]
    assert "from 77 M to 6 B parameters" in path.read_text()
    assert (round(min(sizes) / 1e6), round(max(sizes) / 1e9)) == (77, 6)
    assert not any("repeats" in warning for warning in plan.warnings)
    assert plan.cluster.num_gpus == 8
    assert {run.placement.strategy.num_gpus for run in plan.runs} > {8}


@pytest.mark.parametrize("name", DEEPSPEED_FILES)
def test_deepspeeds_own_class_accepts_a_preset(name):
    from deepspeed.runtime import config as config_module

    values = json.loads((preset_folder() / name).read_text())
    values["train_batch_size"] = values["train_micro_batch_size_per_gpu"] * values["gradient_accumulation_steps"]
    parsed = config_module.DeepSpeedConfig(values)
    stage = int(name[4])
    assert parsed.zero_config.stage == stage
    offload = parsed.zero_config.offload_optimizer
    assert (offload is not None and offload.device == "cpu") == ("offload" in name)
    fields = type(parsed.zero_config).model_fields
    known = set(fields) | {field.alias for field in fields.values()}
    assert set(values["zero_optimization"]) <= known


@pytest.mark.parametrize(("stage", "offload"), LAYOUTS)
def test_deepspeeds_own_class_reads_a_generated_configuration_as_planned(stage, offload, monkeypatch):
    from deepspeed.runtime import config as config_module

    path = shipped_specs()["isoflop_8xh100"]
    run = build_plan(load_spec(path), spec_folder=path.parent, machine=MACHINE).runs[-1]
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = deepspeed_config(
        run,
        zero_stage=stage,
        offload=offload,
        world_size=1,
        micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=run.global_batch_sequences,
    )
    assert '"auto"' not in json.dumps(config)
    parsed = config_module.DeepSpeedConfig(config)
    assert parsed.train_batch_size == run.global_batch_sequences
    assert parsed.train_micro_batch_size_per_gpu == 1
    assert parsed.gradient_accumulation_steps == run.global_batch_sequences
    assert parsed.gradient_clipping == run.recipe.gradient_clipping
    assert parsed.zero_config.stage == stage
    assert not parsed.bfloat16_config.enabled  # see the trap of that name
    assert config["torch_autocast"]["enabled"] is (run.recipe.precision == "bf16")


def test_a_preset_can_be_changed_without_changing_the_next():
    deepspeed_preset(2, "none")["zero_optimization"]["stage"] = 7
    assert deepspeed_preset(2, "none")["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(("stage", "offload"), LAYOUTS)
def test_buckets_are_no_larger_than_the_model(stage, offload):
    for num_params in (1000, 10**6, 10**10):
        section = zero_section(stage, offload, num_params, num_params)
        for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
            assert 0 < section.get(key, 1) <= max(64, num_params)
        assert section.get("stage3_param_persistence_threshold", 0) <= num_params // 1000


@pytest.mark.parametrize("path", sorted(preset_folder().glob("accelerate_*.yaml")), ids=lambda path: path.name)
def test_accelerates_own_class_accepts_a_launch_file(path):
    from accelerate.commands.config import config_args

    loaded = config_args.load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert loaded.distributed_type == "DEEPSPEED"
    assert loaded.num_processes == values["num_processes"]
    assert loaded.num_processes % loaded.num_machines == 0


@pytest.mark.parametrize("path", sorted(preset_folder().glob("accelerate_*.yaml")), ids=lambda path: path.name)
def test_a_launch_file_needs_no_other_file_and_its_command_names_it(path):
    assert not [key for key in yaml.safe_load(path.read_text())["deepspeed_config"] if key.endswith("_file")]
    words = path.read_text().split()
    named = words[words.index("--config_file") + 1]
    assert (PROJECT / named).samefile(path)


@pytest.mark.slow
def test_a_launch_file_launches_a_sweep_from_any_folder(tmp_path):
    write_bytes_corpus(tmp_path / "corpus.txt")
    values = with_values(MICRO, hardware__gpus_per_node=1, design__points=SHORT)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
    launch_file = str(preset_folder() / "accelerate_1gpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", launch_file]
    result = subprocess.run(
        [*command, "-m", "flopsfit_ds.cli", "sweep", "spec.yaml"], cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (record,) = SweepFolder(tmp_path / "outputs" / "micro").records()
    assert record.status == "completed"


def test_a_wheel_holds_presets_and_specs_and_its_command_works_from_any_folder(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel without a network needs setuptools")
    source = tmp_path / "source"
    copied = ("flopsfit_ds", "ds_configs", "pyproject.toml", "README.md", "LICENSE")
    for name in copied:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(PROJECT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True, timeout=300
    )
    installed = tmp_path / "installed"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    inside = {path.name for path in (installed / "flopsfit_ds" / "ds_configs").iterdir()}
    assert {path.name for path in (PROJECT / "ds_configs").iterdir() if path.suffix in (".json", ".yaml")} <= inside
    sources = {path.relative_to(PROJECT) for path in (PROJECT / "flopsfit_ds").rglob("*.py")}
    assert {path for path in sources if not (installed / path).is_file()} == set()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import sys, flopsfit_ds.cli.main as m; print(m.__file__); sys.exit(m.run(sys.argv[1:]))"
    command = [sys.executable, "-c", code]
    answers = {}
    for arguments in (["specs"], ["plan", "isoflop_8xh100", "--json"]):
        result = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        first, answers[arguments[0]] = result.stdout.split("\n", 1)
        assert Path(first).is_relative_to(installed)
    assert "quickstart" in answers["specs"]
    assert "zero3_offload.json" in answers["specs"]
    assert json.loads(answers["plan"])["runs"]
