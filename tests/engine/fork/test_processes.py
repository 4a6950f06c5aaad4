"""Processes are ended with all that they started, whatever they do just then."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from flopsfit_ds.engine.fork.processes import identify, kill_session, session_members


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
