"""The table of faults: which were injected, how many were survived, and the work they cost. Printed after the tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

FAULTS = (
    "SIGKILL of one rank",
    "SIGKILL of a worker group",
    "SIGKILL of the fork server",
    "SIGKILL of the driver",
    "SIGKILL of everything",
    "SIGKILL while a record is written",
    "SIGKILL while a checkpoint is written",
    "a rank that raises or exits",
    "out of memory",
    "NaN or a diverging loss",
    "a hung rank",
    "a stopped rank (SIGSTOP)",
    "SIGTERM, SIGUSR1, SIGUSR2 or SIGINT",
    "preemption by SLURM",
    "a SLURM job cancelled",
    "disk full",
    "disk full: no file more",
    "read-only folder",
    "a folder that vanishes",
    "damaged record",
    "damaged metrics line",
    "damaged checkpoint",
    "damaged plan",
    "damaged events line",
    "hostile tokenizer.json",
    "spec or data changed while running",
    "two drivers on one folder",
    "two sweeps at once on one machine",
    "a run killed beside others in its slot",
    "a stale lease",
    "leftovers of a dead driver",
    "port taken",
    "clock set forth and back",
    "one rank slow",
    "foreign messages to the control store",
    "standard output full or closed",
    "a fork server that does not answer",
    "a job or machine suspended",
    "SIGHUP: the terminal is closed",
    "a node lost, and back",
    "a node of SLURM lost, and back",
    "a node of SLURM drained",
    "a node of a Ray cluster lost, another added",
    "the head of a Ray cluster lost, and back",
)
_PROPERTY = "fault"


class FaultLog:
    """What one test injects; all of it counts as survived if the test passes."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def inject(self, fault: str, times: int = 1) -> None:
        """Note that a fault is injected."""
        assert fault in FAULTS, f"{fault!r} has no row in the table"
        self._properties.append((_PROPERTY, {"fault": fault, "times": times}))

    def cost(self, fault: str, steps: int, allowed: int) -> None:
        """Note how many steps were trained twice, and see that it is no more than a checkpoint interval a run hit.

        Args:
            fault: A row of the table.
            steps: That were trained more than once, as measured.
            allowed: Steps between two checkpoints, for each time and each run that was hit.
        """
        self._properties.append((_PROPERTY, {"fault": fault, "steps": steps, "allowed": allowed}))
        assert steps <= allowed, f"{fault}: {steps} steps were trained twice, at most {allowed} may be"

    def cost_unknown(self, fault: str, reason: str) -> None:
        """Note why the work lost cannot be known."""
        self._properties.append((_PROPERTY, {"fault": fault, "reason": reason}))


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> FaultLog:
    """Notes the faults that a test injects, for the table after the tests."""
    return FaultLog(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, if any fault was injected."""
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
        if getattr(report, "when", None) == "call" and any(name == _PROPERTY for name, _ in report.user_properties)
    ]
    if reports:
        terminalreporter.section("faults")
        for line in fault_table((report.passed, report.user_properties) for report in reports):
            terminalreporter.line(line)


def fault_table(tests: Iterable[tuple[bool, Iterable[tuple[str, Any]]]]) -> list[str]:
    """The table's lines, from whether each test passed and what it noted."""
    injected: dict[str, int] = defaultdict(int)
    survived: dict[str, int] = defaultdict(int)
    costs: dict[str, list[tuple[int, int]]] = defaultdict(list)
    reasons: dict[str, list[str]] = defaultdict(list)
    for passed, properties in tests:
        for name, note in properties:
            if name != _PROPERTY:
                continue
            fault, times = note["fault"], note.get("times", 0)
            injected[fault] += times
            survived[fault] += times if passed else 0
            if "steps" in note:
                costs[fault].append((note["steps"], note["allowed"]))
            if "reason" in note and note["reason"] not in reasons[fault]:
                reasons[fault].append(note["reason"])
    lines = [f"{'fault':38s} {'injected':>8s} {'survived':>8s}  work lost: steps trained twice, of those allowed"]
    for fault in FAULTS:
        cells = []
        if costs[fault]:
            cells.append(f"{sum(steps for steps, _ in costs[fault])} of {sum(most for _, most in costs[fault])}")
        cells += [f"not measured: {reason}" for reason in reasons[fault]]
        if injected[fault]:
            lost = "; ".join(cells) or "not measured"
            lines.append(f"{fault:38s} {injected[fault]:8d} {survived[fault]:8d}  {lost}")
        else:
            lines.append(f"{fault:38s} {0:8d} {'-':>8s}  no test of it was run")
    return lines
