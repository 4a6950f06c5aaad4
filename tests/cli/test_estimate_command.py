"""`estimate-memory` as a user calls it."""

import json
import os
import subprocess
import sys

import pytest

from flopsfit_ds.cli.main import run

SHAPE_FLAGS = "--layers=32 --hidden=4096 --heads=32 --vocab=50257 --seq=512 --micro-batch=1".split()  # noqa: SIM905


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(["estimate-memory", *arguments, "--quick", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_shape_by_flags_answers_for_exactly_what_was_asked(capsys):
    flags = [*SHAPE_FLAGS, "--zero", "3", "--gpus", "4", "--checkpointing"]
    (point,) = answer(capsys, *flags)["points"]
    chosen = point["chosen"]
    assert (chosen["zero_stage"], chosen["num_gpus"], chosen["micro_batch_size_per_gpu"]) == (3, 4, 1)
    assert chosen["activation_checkpointing"]
    assert sum(chosen["components"].values()) == chosen["peak_allocated_bytes"]
    assert chosen["fits"]
    assert chosen["reason"]
    # fp32 weights, gradients and two moments over four GPUs at least
    assert chosen["peak_allocated_bytes"] > 16 * point["num_params"] / 4


def test_every_point_of_a_spec_has_its_strategies_and_one_choice(capsys):
    points = answer(capsys, "cpu_zero")["points"]
    assert [point["chosen"]["zero_stage"] for point in points] == [0, 2, 3]
    for point in points:
        layouts = {(row["zero_stage"], row["num_gpus"]) for row in point["strategies"]}
        assert layouts == {(stage, count) for stage in (0, 2, 3) for count in (1, 2)}
        assert all(row["fits"] == (row["device_total_bytes"] <= 9 * 2**20) for row in point["strategies"])


def test_one_run_is_shown_in_detail(capsys):
    run_id = answer(capsys, "cpu_zero")["points"][0]["run_ids"][0]
    assert run(["estimate-memory", "cpu_zero", "--quick", "--run", run_id[:6]]) == 0
    shown = capsys.readouterr().out
    assert "peak allocated" in shown
    assert "fragmentation" in shown
    assert shown.count("parameters,") == 1


def test_the_micro_batch_that_the_simulation_settles_on_is_named_and_shown_in_the_table(capsys):
    small = ["cpu_zero", "hardware.device_memory=8MiB", "placement.max_micro_batch_size_per_gpu=64"]
    run_id = answer(capsys, *small)["points"][0]["run_ids"][0]
    arguments = ["estimate-memory", *small, "--run", run_id]
    assert run([*arguments, "--json"]) == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    chosen = point["chosen"]
    layout = {key: chosen[key] for key in ("zero_stage", "num_gpus", "offload")}
    (row,) = (row for row in point["strategies"] if layout.items() <= row.items())
    micro = chosen["micro_batch_size_per_gpu"]
    assert micro < 16, "by closed forms 16 fit"
    assert row["micro_batch_size_per_gpu"] == micro
    assert (
        f"micro-batch of 16 needs 8.4 MiB simulated; ZeRO-0 on 1 GPU with a micro-batch of {micro} fits"
        in (chosen["reason"])
    )


def test_accumulation_is_a_flag_and_keeps_gradients_through_the_forward_pass(capsys):
    flags = [*SHAPE_FLAGS, "--zero", "1", "--gpus", "8"]
    (once,) = answer(capsys, *flags)["points"]
    (often,) = answer(capsys, *flags, "--accumulation", "4")["points"]
    assert (once["chosen"]["gradient_accumulation_steps"], often["chosen"]["gradient_accumulation_steps"]) == (1, 4)
    assert often["chosen"]["peak_allocated_bytes"] > 1.1 * once["chosen"]["peak_allocated_bytes"]


def test_frozen_parameters_show_their_fraction(capsys):
    frozen = "training.frozen_parameters=['blocks.*','embedding.*']"
    (first, *_) = answer(capsys, "cpu_zero", frozen)["points"]
    assert 0 < first["trainable_fraction"] < 0.2
    assert first["chosen"]["components"]["optimizer_states"] < 8 * first["num_params"] * 0.2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layers", "2"], "--hidden"),
        ([*SHAPE_FLAGS, "--device", "H10"], "nearest"),
        (["--layers", "2", "--hidden", "100", "--heads", "3"], "multiple of --heads"),
        (["cpu_zero", "--run", "zzz"], "this sweep has"),
        (["cpu_zero", "--gpus", "64", "--device", "L4", "--kv-heads", "2"], "--device, --gpus, --kv-heads: only for a"),
        ([*SHAPE_FLAGS, "--run", "abc"], "--run: only with a spec"),
        *(
            ([*SHAPE_FLAGS, f"--{flag}", value], f"--{flag}")
            for flag in ("layers", "hidden", "heads", "kv-heads", "intermediate", "vocab", "seq", "micro-batch")
            for value in ("0", "-1")
        ),
    ],
)
def test_mistakes_are_one_line(arguments, expected, capsys):
    assert run(["estimate-memory", "--quick", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_without_torch_one_line_names_the_way_that_needs_none(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    command = [sys.executable, "-m", "flopsfit_ds.cli.main", "estimate-memory", *SHAPE_FLAGS]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no torch here" in line
    assert "--quick" in line


def test_quick_answers_a_hundred_points_without_torch_and_the_like(tmp_path):
    sizes = ", ".join(f"{int(1e8 * 1.03**number)}" for number in range(100))
    spec = tmp_path / "hundred.yaml"
    spec.write_text(
        "name: hundred\nmodel: {vocab_size: 32000, context_length: 1024}\n"
        f"design: {{method: ladder, num_params: [{sizes}], tokens_per_parameter: [20]}}\n"
        "hardware: {device: H100-SXM, gpus_per_node: 8}\n"
    )
    code = (
        "import sys\n"
        "from flopsfit_ds.cli.main import run\n"
        f"code = run(['estimate-memory', {str(spec)!r}, '--quick', '--json'])\n"
        "print(code, sorted({'torch', 'deepspeed', 'numpy', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert len(json.loads(done.stdout)["points"]) > 50
