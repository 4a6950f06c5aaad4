"""What SLURM says of jobs: `squeue` first, the controller's own word, then `sacct` for those that it has forgotten."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Collection, Sequence

from flopsfit_ds.base.errors import LaunchError

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0
"""Of one call of a program of SLURM's; a call that hangs must not hold up the driver's look at signals for long."""
_PATIENCE_SECONDS = 900.0
"""For a controller that does not answer: restarts and failovers take minutes."""
_TAIL_CHARACTERS = 400
"""Of a program's complaint, as much as a line of an error bears."""
GONE = "GONE"
"""Neither the controller nor the accounting knows the job: it has ended, nobody knows how."""
NOT_BY_THE_RUN = frozenset(
    {"BOOT_FAIL", "CANCELLED", "DEADLINE", GONE, "NODE_FAIL", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"}
)
"""Ends that the cluster or a person brought about, as far as is known."""
ENDED = NOT_BY_THE_RUN | {"COMPLETED", "FAILED", "LAUNCH_FAILED", "OUT_OF_MEMORY"}


class SlurmSilentError(LaunchError):
    """A command of SLURM failed, or did not answer in time."""


def ask_slurm(command: Sequence[str]) -> str:
    """Standard output of a command of SLURM.

    Raises:
        SlurmSilentError: It is missing, failed, or did not answer within a minute.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmSilentError(f"{command[0]} has not answered for {_TIMEOUT_SECONDS:.0f} s; try again later") from None
    except OSError as error:
        raise SlurmSilentError(f"{command[0]}: {error.strerror}; run on a login node of the cluster") from None
    if answer.returncode:
        raise SlurmSilentError(f"{command[0]} says: {answer.stderr.strip()[-_TAIL_CHARACTERS:]}")
    return answer.stdout


class JobStates:
    """States of jobs, as of the last answer."""

    def __init__(self) -> None:
        self._silent_since: float | None = None
        self._told_of_sacct = False

    def look(self, job_ids: Collection[str]) -> dict[str, str] | None:
        """As `ask`; None where SLURM does not answer at the moment.

        Raises:
            LaunchError: It has not answered for a quarter of an hour.
        """
        try:
            states = self.ask(job_ids)
        except SlurmSilentError as error:
            self._bear(error)
            return None
        self._silent_since = None
        return states

    def ask(self, job_ids: Collection[str]) -> dict[str, str]:
        """The state of each job, by one call for all; one that has a process left is not called ended.

        Raises:
            SlurmSilentError: `squeue` does not answer.
        """
        states = _states(ask_slurm(["squeue", "-h", "--me", "-t", "all", "-o", "%A|%T"]))
        forgotten = sorted(set(job_ids) - set(states))
        accounted = self._ask_accounting(forgotten) if forgotten else {}
        for job_id in forgotten:
            state = accounted.get(job_id, GONE)
            states[job_id] = state if state in ENDED else GONE
        return {job_id: states[job_id] for job_id in job_ids}

    def _bear(self, error: SlurmSilentError) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            _log.warning("%s; waiting for SLURM for %.0f s", error, _PATIENCE_SECONDS)
        if now - self._silent_since >= _PATIENCE_SECONDS:
            raise LaunchError(
                f"SLURM has not answered for {now - self._silent_since:.0f} s: {error}; jobs go on, and the same "
                "command takes them up once `squeue --me` answers"
            )

    def _ask_accounting(self, job_ids: Sequence[str]) -> dict[str, str]:
        """How jobs ended; nothing where the cluster keeps no accounts."""
        try:
            return _states(ask_slurm(["sacct", "-n", "-X", "-P", "-j", ",".join(job_ids), "-o", "JobID,State"]))
        except SlurmSilentError as error:
            if not self._told_of_sacct:
                _log.warning("%s; how a job ended is not known once the controller has forgotten it", error)
            self._told_of_sacct = True
            return {}


def _states(table: str) -> dict[str, str]:
    """Of lines `id|STATE`; an accountant's `CANCELLED by 0` is CANCELLED."""
    pairs = (line.split("|")[:2] for line in table.splitlines() if "|" in line)
    return {job_id: (words.split() or [GONE])[0].rstrip("+") for job_id, words in pairs}
