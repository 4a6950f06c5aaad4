"""The command line as a newcomer meets it: help, plans, clear refusals, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flopsfit_ds import __version__
from flopsfit_ds.base.presets import shipped_specs
from flopsfit_ds.cli.main import run
from helpers.sweeps import MICRO, plan_of, with_values, write_bytes_corpus

PROJECT = Path(__file__).resolve().parents[2]
LAUNCHER = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, without a launcher's variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(folder: Path, **changes) -> str:
    """A micro spec with its data beside it."""
    write_bytes_corpus(folder / "corpus.txt")
    (folder / "spec.yaml").write_text(yaml.safe_dump(with_values(MICRO, **changes)))
    return "spec.yaml"


def refused(capsys, *arguments: str, code: int = 2) -> str:
    """The one line on stderr; nothing on stdout."""
    assert run(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


class TestHelp:
    def test_help_lists_the_commands(self, here, capsys):
        assert run(["--help"]) == 0
        text = capsys.readouterr().out
        for command in ("plan", "sweep", "estimate-memory", "fit", "report", "schema", "specs"):
            assert command in text

    def test_no_arguments_show_the_help(self, here, capsys):
        assert run([]) in (0, 2)
        assert "Usage" in "".join(capsys.readouterr())

    def test_the_version_is_the_packages(self, here, capsys):
        assert run(["--version"]) == 0
        assert capsys.readouterr().out.strip() == __version__

    @pytest.mark.parametrize("command", [["sweep", "quickstart", "--dry-run"], ["retry", "."]], ids=["sweep", "retry"])
    @pytest.mark.parametrize(
        ("option", "said"), [("--slots=0", "--slots"), ("--slots=-1", "--slots"), ("--executor=slrum", "slurm")]
    )
    def test_slots_and_executors_that_there_are_not(self, here, capsys, command, option, said):
        assert run([*command, option]) == 2
        message = capsys.readouterr().err
        assert "Usage" in message
        assert said in message

    @pytest.mark.parametrize("arguments", [["plann", "quickstart"], ["plan"], ["plan", "quickstart", "--nothing"]])
    def test_a_misspelt_command_or_option_is_the_users_mistake(self, here, capsys, arguments):
        assert run(arguments) == 2
        captured = capsys.readouterr()
        assert "Usage" in captured.err
        assert "Traceback" not in captured.err

    def test_the_installed_command_is_this_one(self, here):
        program = Path(sys.executable).with_name("flopsfit-ds")
        if not program.exists():
            pytest.skip("the package is not installed in this environment")
        result = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == __version__


class TestPlan:
    def test_a_shipped_spec_is_planned_by_its_name_from_any_folder(self, here, capsys):
        assert run(["plan", "quickstart"]) == 0
        text = capsys.readouterr().out
        assert "15 runs" in text
        assert "ZeRO-0" in text
        assert list(here.iterdir()) == []

    def test_the_table_shows_every_run_and_why_it_lies_where_it_lies(self, here, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "250")
        assert run(["plan", "isoflop_8xh100"]) == 0
        table = capsys.readouterr().out
        assert run(["plan", "isoflop_8xh100", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        for planned in plan["runs"]:
            assert planned["run_id"] in table
        assert "of the speed a GPU" in table

    def test_overrides_are_positional(self, here, capsys):
        spec = write(here)
        assert run(["plan", spec, "training.seeds=[0,1,2]", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["runs"]) == 3

    def test_warnings_are_shown(self, here, capsys):
        assert run(["plan", write(here, design__points=[{"num_params": 6e3, "num_tokens": 1e6}])]) == 0
        assert "the data repeats" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize("name", ["shard[abc].bin", "x[/red].bin"])
    @pytest.mark.parametrize("command", [["plan"], ["estimate-memory", "--quick"]], ids=["plan", "estimate-memory"])
    def test_a_warning_shows_names_as_they_are(self, here, capsys, command, name):
        data = {"source": "tokens", "path": name, "num_tokens": 10**6, "heldout_tokens": 1024}
        assert run([*command, write(here, data=data)]) == 0
        assert name in capsys.readouterr().out

    def test_a_sweeps_display_shows_names_as_they_are(self, here, capsys):
        from flopsfit_ds.study.console import Console
        from flopsfit_ds.study.progress import SweepDisplay

        write(here)
        plan = replace(plan_of(MICRO, here), warnings=("data.path: shard[abc].bin[/red]: no such file",))
        SweepDisplay(Console(), plan).on_sweep(plan.runs, (), ())
        assert "shard[abc].bin[/red]: no such file" in capsys.readouterr().out

    @pytest.mark.parametrize("width", [40, 60, 80, 120, 250])
    def test_a_narrow_table_leaves_columns_out_and_cuts_no_number(self, here, capsys, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(["plan", "isoflop_8xh100"]) == 0
        lines = capsys.readouterr().out.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("run "))
        table = lines[start : start + 31]
        assert max(len(line.rstrip()) for line in table) <= width
        assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in table)
        hidden = {"LR", "batch", "steps", "time"} - set(table[0].split())
        assert bool(hidden) == (width < 100)
        assert all(name in lines[start + 31] for name in hidden)

    def test_a_folder_does_not_shadow_a_shipped_spec(self, here, capsys):
        (here / "quickstart").mkdir()
        assert run(["plan", "quickstart"]) == 0
        assert "15 runs" in capsys.readouterr().out

    def test_a_file_shadows_a_shipped_spec_of_its_name(self, here, capsys):
        write(here)
        (here / "spec.yaml").rename(here / "quickstart")
        assert run(["plan", "quickstart", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["spec"]["name"] == "micro"


class TestSchemaAndSpecs:
    def test_the_schema_is_json_with_every_section(self, here, capsys):
        assert run(["schema"]) == 0
        schema = json.loads(capsys.readouterr().out)
        assert {"name", "model", "data", "design", "training", "hardware", "placement", "fit"} <= set(
            schema["properties"]
        )

    def test_the_shipped_specs_are_listed_with_a_line_each(self, here, capsys):
        assert run(["specs"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for name in shipped_specs():
            line = next(line for line in lines if line.startswith(f"{name} "))
            assert len(line.removeprefix(name).strip()) > 20
        assert any("zero3_offload.json" in line for line in lines)


class TestMistakes:
    @pytest.mark.parametrize("command", ["plan", "sweep", "estimate-memory"])
    def test_a_missing_spec(self, here, capsys, command):
        assert "nowhere.yaml: no such file" in refused(capsys, command, "nowhere.yaml")

    @pytest.mark.parametrize("command", ["plan", "sweep"])
    def test_a_misspelt_key(self, here, capsys, command):
        spec = write(here, training__lerning_rates=[1])
        message = refused(capsys, command, spec)
        assert "training.lerning_rates: unknown key (did you mean learning_rates?)" in message
        assert "spec.yaml:" in message

    def test_a_budget_below_one_batch(self, here, capsys):
        message = refused(capsys, "sweep", write(here, design__points=[{"num_params": 6e3, "compute": 1e5}]))
        assert "less than one global batch" in message

    def test_a_context_longer_than_the_data(self, here, capsys):
        message = refused(capsys, "sweep", write(here, model__context_length=150_000, data__heldout_tokens=150_001))
        assert "one sequence needs 150001" in message

    def test_a_device_too_small_names_what_would_do(self, here, capsys):
        message = refused(capsys, "sweep", write(here, hardware__device_memory="20KiB"))
        assert "does not fit" in message
        assert "needs" in message

    def test_an_unknown_device_names_the_nearest(self, here, capsys):
        assert "nearest: H100-SXM" in refused(capsys, "plan", write(here, hardware={"device": "H100-SMX"}))

    def test_ids_beyond_the_vocabulary(self, here):
        message = refused_sweep(write(here, model__vocab_size=100))
        assert "is beyond model.vocab_size 100" in message

    def test_a_folder_that_cannot_be_written(self, here):
        message = refused_sweep(write(here, output_root="/proc/nothing"))
        assert "/proc/nothing/micro: cannot be made or written" in message
        assert "change output_root" in message

    def test_a_folder_in_place_of_which_a_file_stands(self, here):
        spec = write(here)
        (here / "outputs").write_text("")
        assert "cannot be made or written" in refused_sweep(spec)
        assert (here / "outputs").read_text() == ""

    def test_a_launcher_whose_ranks_are_not_the_specs_gpus(self, here):
        message = refused_sweep(write(here, hardware__gpus_per_node=2), **LAUNCHER)
        assert "the launcher started 3 ranks, and the plan is for 2 devices" in message
        assert "hardware.gpus_per_node=3" in message

    def test_of_many_launched_ranks_one_tells(self, here, capsys, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert run(["plan", "nowhere.yaml"]) == 2
        assert capsys.readouterr().err == ""

    def test_a_launchers_variables_that_are_no_numbers(self, here, capsys, monkeypatch):
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.setenv(name, "")
        assert "no such file" in refused(capsys, "plan", "nowhere.yaml")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "x")
        assert "WORLD_SIZE='x'" in refused(capsys, "plan", write(here, hardware={"device": "auto"}))

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_a_full_disk_under_the_output_is_one_line(self, here):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "flopsfit_ds.cli", "schema"]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert result.returncode == 2
        assert result.stderr == "error: the output cannot be written: No space left on device\n"

    def test_two_mistakes_are_both_told(self, here, capsys):
        message = refused(capsys, "plan", write(here, training__beta1=2, training__lerning=1))
        assert "training.beta1" in message
        assert "training.lerning" in message

    def test_a_reader_that_leaves_early_is_no_error(self, here):
        code = f"{sys.executable} -m flopsfit_ds.cli.main schema | head -1"
        result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "{"
        assert "Traceback" not in result.stderr


def refused_sweep(spec: str, **environment: str) -> str:
    """As `refused`, in a process of its own: a sweep may start servers."""
    command = [sys.executable, "-m", "flopsfit_ds.cli.main", "sweep", spec]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert not list(Path("outputs").rglob("metrics.jsonl")), "something was trained"
    return errors[0]
