"""The process that simulations are forked from: jobs side by side, and what is left when one of them dies."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flopsfit_ds.simulate.server import SimulationError, SimulationServer


@pytest.fixture(scope="module")
def server() -> Iterator[SimulationServer]:
    with SimulationServer() as started:
        yield started


@pytest.fixture
def hook(tmp_path, monkeypatch):
    """A start-up hook of the site, as every Python process of the machine runs it."""

    def write(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))

    return write


WITHOUT_LIBRARIES = """
import sys, types
torch = types.SimpleNamespace(_dynamo=None, set_num_threads=lambda number: None)
sys.modules.update({"torch": torch, "torch._dynamo": torch})
path = ""
for name in "deepspeed.runtime.zero.muon.original_muon".split("."):
    path = f"{path}.{name}".strip(".")
    sys.modules[path] = types.SimpleNamespace()
for name in ("simulate.rank", "train.model.decoder", "train.session"):
    sys.modules[f"flopsfit_ds.{name}"] = types.SimpleNamespace()
"""
"""For servers that are asked for nothing of PyTorch: loading what a simulation needs takes four CPU seconds each."""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core runs one job at a time")
def test_jobs_run_side_by_side(server, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # each of the two waits for the other
    jobs = [server.submit("subprocess:call", ["sh", "-c", command]) for command in (f"cat {pipe}", f"echo > {pipe}")]
    assert [job.result(timeout=240) for job in jobs] == [0, 0]


def test_a_job_that_dies_fails_alone(server):
    jobs = [server.submit("os:_exit", 3), server.submit("builtins:abs", -5), server.submit("math:sqrt", -1.0)]
    with pytest.raises(SimulationError, match="ended with status 3"):
        jobs[0].result(timeout=240)
    assert jobs[1].result(timeout=240) == 5
    with pytest.raises(SimulationError, match="ValueError"):
        jobs[2].result(timeout=240)
    assert server.submit("builtins:abs", -6).result(timeout=240) == 6


def test_answers_belong_to_their_questions(server):
    jobs = [server.submit("builtins:abs", -number) for number in range(20)]
    assert [job.result(timeout=240) for job in jobs] == list(range(20))


def test_a_job_that_cannot_be_handed_over_is_refused(server):
    with pytest.raises(SimulationError, match="cannot be handed"):
        server.submit("builtins:abs", threading.Lock())


def test_a_server_that_is_killed_fails_what_waits_and_what_comes(hook):
    hook(WITHOUT_LIBRARIES)
    ended = SimulationServer()
    waiting = ended.submit("time:sleep", 3600)
    ended._process.kill()
    with pytest.raises(SimulationError, match="process ended"):
        waiting.result(timeout=240)
    with pytest.raises(SimulationError, match="process ended"):
        ended.submit("builtins:abs", -1).result(timeout=240)
    ended.close()


def test_the_end_of_the_caller_ends_server_and_jobs(tmp_path, hook):
    hook(WITHOUT_LIBRARIES)
    job, caller = tmp_path / "job", tmp_path / "caller.py"
    caller.write_text(
        "import os, pathlib, time\n"
        "from flopsfit_ds.simulate.server import SimulationServer\n"
        "server = SimulationServer()\n"
        f"server.submit('subprocess:call', ['sh', '-c', 'echo $PPID > {job}.part; mv {job}.part {job}; sleep 3600'])\n"
        f"while not pathlib.Path({str(job)!r}).exists(): time.sleep(0.05)\n"
        "print(server._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, str(caller)], capture_output=True, text=True, check=True, timeout=240)
    deadline = time.monotonic() + 240
    while any(lives(int(number)) for number in (done.stdout, job.read_text())):
        assert time.monotonic() < deadline, "the server or its job outlived the caller"
        time.sleep(0.05)


def lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(") ", 1)[1][0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # a zombie is only waiting to be noticed


@pytest.mark.parametrize(
    "code", ["print('a notice of the site' * 9000, flush=True)", "import sys; sys.stdin.read(); print(end='\\0' * 64)"]
)
def test_what_a_start_up_hook_prints_or_reads_is_no_answer(hook, code):
    hook(WITHOUT_LIBRARIES + code)
    with SimulationServer() as noisy:
        assert noisy.submit("builtins:abs", -7).result(timeout=240) == 7


def test_a_server_whose_libraries_do_not_load_says_what_stopped_it(hook):
    hook("import sys; sys.modules['deepspeed'] = None")
    with SimulationServer() as broken:
        with pytest.raises(SimulationError, match=r"did not start: ModuleNotFoundError .*deepspeed"):
            broken.submit("builtins:abs", -7).result(timeout=240)
        with pytest.raises(SimulationError, match="did not start"):
            broken.submit("builtins:abs", -7).result(timeout=240)


def test_an_answer_that_cannot_be_read_fails_all_that_waits_and_what_comes(tmp_path, hook):
    hook(WITHOUT_LIBRARIES)
    (tmp_path / "answers_of_tests.py").write_text(
        "class Local:\n"
        "    def __reduce__(self):\n"
        "        return eval, (\"__import__('sys').modules['answers_of_tests'].there\",)\n"
        "there = True\n"
        "def make(_):\n"
        "    return Local()\n"
    )
    with SimulationServer() as odd:
        waiting = [odd.submit("time:sleep", 3600), odd.submit("answers_of_tests:make", None)]
        for job in waiting:  # the module is not loaded in this process, so that the answer means nothing here
            with pytest.raises(SimulationError, match="cannot be read: KeyError"):
                job.result(timeout=240)
        with pytest.raises(SimulationError, match="cannot be read"):
            odd.submit("builtins:abs", -1).result(timeout=240)
