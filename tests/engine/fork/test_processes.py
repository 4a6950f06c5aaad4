"""Processes are ended with all that they started, whatever they do just then."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from flopsfit_ds.engine.fork.processes import identify, kill_session, session_members
from helpers.engine.drivers import SCRIPT
from helpers.engine.toy import undisturbed_loss


@pytest.mark.parametrize("own_session", [True, False])
def test_a_process_that_ends_while_it_is_being_killed_is_no_error(monkeypatch, own_session):
    command = ["sh", "-c", "sleep 600 & wait"] if own_session else ["sleep", "600"]
    leader = subprocess.Popen(command, start_new_session=own_session)
    identity = identify(leader.pid)
    deadline = time.monotonic() + 60
    while own_session and len(session_members(leader.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    getsid = os.getsid

    def end_first(pid):
        session = getsid(pid)
        leader.kill()
        leader.wait()
        return getsid(pid) if own_session else session

    monkeypatch.setattr(os, "getsid", end_first)
    kill_session(identity)
    while session_members(leader.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session_members(leader.pid) == [], "what it had started is ended too"


def test_locks_that_workers_make_are_not_left_behind(tmp_path):
    """Whatever reads the driver's output to its end has waited for the tracker that would tell of them."""
    command = [sys.executable, str(SCRIPT), str(tmp_path / "outputs"), "2", "[1]", "2", "0.0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert f"losses [{undisturbed_loss()}, {undisturbed_loss()}]" in ended.stdout
    assert "leaked" not in ended.stderr
