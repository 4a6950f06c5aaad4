"""The traps of DeepSpeed and Accelerate that the design rests on: one test each, named after the trap."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from flopsfit_ds.base.errors import RecordError
from flopsfit_ds.base.presets import preset_folder
from flopsfit_ds.base.storage import read_json
from flopsfit_ds.plan.ds_config import deepspeed_config
from flopsfit_ds.train.checkpoint.files import SavedState, commit_checkpoint, newest_checkpoint, verify_checkpoint
from flopsfit_ds.train.data.sampling import share_of_rank
from flopsfit_ds.train.order import EXIT_OUT_OF_MEMORY
from flopsfit_ds.train.schedule import learning_rate_at
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus
from helpers.train.broken_models import OutOfMemoryWorkload
from helpers.train.ranks import Layout, RankServer, start, workload_of

PROJECT = Path(__file__).resolve().parents[2]
SHORT = {"design__points": [{"num_params": 6e3, "num_tokens": 3840}]}
FOREIGN = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
    "TORCHELASTIC_RUN_ID": "none",
    "GROUP_RANK": "5",
    "ROLE_WORLD_SIZE": "9",
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_PORT": "1",
}


@pytest.fixture(scope="module")
def foreign_server(tmp_path_factory):
    """Ranks whose environment a launcher and a default configuration of Accelerate have filled."""
    extensions = tmp_path_factory.mktemp("extensions")
    server = RankServer({**FOREIGN, "TORCH_EXTENSIONS_DIR": str(extensions)})
    server.extensions = extensions  # pyright: ignore[reportAttributeAccessIssue]
    yield server
    server.close()


def begin(server, folder: Path, layout: Layout, target: str | None = None, name: str = "run", **changes):
    write_bytes_corpus(folder / "corpus.txt")
    plan = plan_of(with_values(MICRO, **SHORT, **changes), folder)
    options = {"target": target} if target else {}
    return start(server, plan.runs[0], workload_of(plan, plan.runs[0], folder), folder / name, layout, **options)


def described(
    server, folder: Path, layout: Layout, target: str = "helpers.train.trap_targets:describe_session", **changes
) -> dict:
    name = f"{target.partition(':')[2]}-{layout.zero_stage}-{layout.world_size}"
    attempt = begin(server, folder, layout, target, name, **changes)
    assert attempt.wait() == [0] * layout.world_size, attempt.logs()
    return read_json(folder / name / "session.0.json")


class TestTrainingOnACpu:
    @pytest.mark.parametrize("layout", [Layout(0, 1), Layout(2, 2, 2)], ids=str)
    def test_trap_accelerate_use_cpu_drops_the_plugin_and_defaults_override_arguments(
        self, foreign_server, trained, tmp_path, layout
    ):
        attempt = begin(foreign_server, tmp_path, layout)
        assert attempt.wait() == [0] * layout.world_size, attempt.logs()
        assert attempt.losses == trained(layout, **SHORT).losses
        assert attempt.outcome["observed"]["zero_stage"] == layout.zero_stage

    def test_trap_every_rank_believes_to_be_alone(self, server, tmp_path):
        found = described(server, tmp_path, Layout(2, 2, 2))
        assert (found["engine"], found["num_processes"], found["accumulation"]) == ("DeepSpeedEngine", 2, 2)

    def test_trap_plugin_without_transformers(self):
        needed = importlib.metadata.requires("flopsfit-ds") or []
        assert any(entry.startswith("transformers") and "extra ==" not in entry for entry in needed)

    def test_trap_deepspeed_puts_local_rank_before_the_scripts_arguments(self, tmp_path):
        command = [sys.executable, str(PROJECT / "scripts" / "sweep.py"), "--local_rank=0", "nowhere.yaml"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "nowhere.yaml: no such file" in result.stderr
        assert "local_rank" not in result.stderr

    def test_trap_first_init_distributed_compiles_shm_comm(self, foreign_server, tmp_path):
        attempt = begin(foreign_server, tmp_path, Layout(1, 2))
        assert attempt.wait() == [0, 0], attempt.logs()
        assert list(foreign_server.extensions.iterdir()) == []

    def test_trap_one_process_without_launcher_looks_for_mpi(self, server, tmp_path):
        assert described(server, tmp_path, Layout(0, 1))["num_processes"] == 1

    @pytest.mark.parametrize("path", sorted(preset_folder().glob("accelerate_*.yaml")), ids=lambda path: path.name)
    def test_trap_accelerate_launch_refuses_cpu_with_deepspeed(self, path):
        values = yaml.safe_load(path.read_text())
        assert values["distributed_type"] == "DEEPSPEED"
        assert not values.get("use_cpu")
        assert values["num_processes"] >= 1  # the default would be the number of GPUs of the launching machine

    def test_trap_prepare_imports_dynamo(self, server, tmp_path):
        assert described(server, tmp_path, Layout(1, 1))["dynamo_imported_late"] == []


class TestPrecision:
    def test_trap_bf16_enabled_applies_weight_decay_once_too_often_at_stage_0(self, server, tmp_path):
        found = described(server, tmp_path, Layout(0, 1), training__precision="bf16")
        assert "FP16" not in found["optimizer"]
        assert found["parameter_types"] == ["torch.float32"]

    @pytest.mark.parametrize("stage", [0, 1, 2, 3])
    def test_trap_bf16_section_is_never_written(self, stage, corpus_folder):
        run = plan_of(with_values(MICRO, training__precision="bf16"), corpus_folder).runs[0]
        config = deepspeed_config(
            run, zero_stage=stage, offload="none", world_size=1, micro_batch_size_per_gpu=8,
            gradient_accumulation_steps=1,
        )  # fmt: skip
        assert not {"bf16", "fp16", "amp"} & set(config)
        assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


class TestManyExperiments:
    def test_trap_zero_3_replaces_linear_for_the_rest_of_the_process(self, server, tmp_path):
        inside = described(server, tmp_path, Layout(3, 1))["linear"]
        after = described(server, tmp_path, Layout(0, 1), "helpers.train.trap_targets:describe_linear")["linear"]
        assert "deepspeed" in inside  # the trap is still there: else this test, and a fresh process a point, can go
        assert "deepspeed" not in after

    def test_trap_ports_collide(self, server, tmp_path):
        attempts = [begin(server, tmp_path, Layout(1, 2), name=f"run-{number}") for number in range(2)]
        assert len({attempt.store.port for attempt in attempts}) == 2
        for attempt in attempts:
            assert attempt.wait() == [0, 0], attempt.logs()

    def test_trap_a_rank_out_of_memory_is_told_apart(self, server, tmp_path):
        write_bytes_corpus(tmp_path / "corpus.txt")
        plan = plan_of(MICRO, tmp_path)
        workload = workload_of(plan, plan.runs[0], tmp_path)
        broken = OutOfMemoryWorkload(workload.shape, workload.tokens)
        attempt = start(server, plan.runs[0], broken, tmp_path / "run", Layout(0, 1))
        assert attempt.wait() == [EXIT_OUT_OF_MEMORY], attempt.logs()
        assert read_json(attempt.folder.attempt(1) / "error.0.json")["kind"] == "oom"


class TestAccelerateWithDeepSpeed:
    def test_trap_the_three_batch_numbers_must_agree(self, corpus_folder):
        run = plan_of(MICRO, corpus_folder).runs[0]
        with pytest.raises(AssertionError):
            deepspeed_config(
                run, zero_stage=0, offload="none", world_size=2, micro_batch_size_per_gpu=8,
                gradient_accumulation_steps=1,
            )  # fmt: skip

    def test_trap_a_short_last_window_is_underweighted(self):
        with pytest.raises(ValueError, match="reshape"):
            share_of_rank(np.arange(7), 0, 1, 2)

    def test_trap_the_scheduler_steps_once_a_rank(self, trained, tmp_path):
        write_bytes_corpus(tmp_path / "corpus.txt")
        run = plan_of(with_values(MICRO, **SHORT), tmp_path).runs[0]
        expected = [learning_rate_at(step, run.num_steps, run.recipe) for step in range(run.num_steps)]
        lines = trained(Layout(2, 2, 2), **SHORT).folder.metrics.read()
        assert [line["learning_rate"] for line in lines] == pytest.approx(expected)

    def test_trap_clipping_comes_from_the_deepspeed_config_and_stage_0_forgets_the_norm(self, trained):
        tight = {**SHORT, "training__gradient_clipping": 0.01, "training__epsilon": 1e-2}
        loose = {**tight, "training__gradient_clipping": 0}
        curves = {stage: trained(Layout(stage, 1), **tight) for stage in (0, 2)}
        assert np.abs(np.subtract(curves[0].losses, curves[2].losses)).max() <= 1e-5
        assert np.abs(np.subtract(curves[0].losses, trained(Layout(0, 1), **loose).losses)).max() > 1e-2
        norms = {
            stage: [line["gradient_norm"] for line in curve.folder.metrics.read()] for stage, curve in curves.items()
        }
        assert norms[0] == pytest.approx(norms[2], rel=1e-4)
        assert min(norms[2]) > 0

    @pytest.mark.slow
    @pytest.mark.long
    def test_trap_torch_warns_of_deepspeeds_collectives_at_every_step(self, trained):
        log = trained(Layout(3, 2, 2)).folder.attempt(1) / "log.0.txt"
        assert len(log.read_text().splitlines()) < 20, "the log of a long run would fill a disk"

    def test_trap_zero_3_parameters_have_no_elements(self, server, tmp_path):
        found = described(server, tmp_path, Layout(3, 2))
        assert found["numel"] < found["counted"]
        write_bytes_corpus(tmp_path / "corpus.txt")
        assert found["counted"] == plan_of(with_values(MICRO, **SHORT), tmp_path).runs[0].num_params_total

    def test_trap_a_checkpoint_is_code_so_only_the_runs_own_is_loaded(self, tmp_path):
        temporary = tmp_path / ".step-5.tmp"
        temporary.mkdir()
        (temporary / "state.pt").write_bytes(b"weights")
        state = SavedState(temporary, "mine", 5, 1.0, 5.5, 0, 1)
        commit_checkpoint(tmp_path, state)
        found = newest_checkpoint(tmp_path, "mine")
        assert found is not None
        assert (found.step, found.path) == (5, tmp_path / "step-5")
        assert newest_checkpoint(tmp_path, "theirs") is None
        (tmp_path / "step-5" / "state.pt").write_bytes(b"harmful")
        with pytest.raises(RecordError, match="has changed since it was written"):
            verify_checkpoint(tmp_path / "step-5", "mine")

    @pytest.mark.parametrize("path", sorted(preset_folder().glob("zero*.json")), ids=lambda path: path.name)
    def test_trap_keys_that_raise_in_current_versions(self, path):
        keys = set(json.loads(path.read_text()))
        assert not keys & {"elasticity", "amp", "progressive_layer_drop", "optimizer", "scheduler"}
        assert not [key for key in json.loads(path.read_text())["zero_optimization"] if key.startswith("mics")]
