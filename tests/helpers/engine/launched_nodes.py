"""Toy sweeps on several nodes, started as launchers would, each node at a loopback address of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from helpers.engine.drivers import SCRIPT
from helpers.ports import free_port


def start_nodes(folder, num_nodes, ranks_per_node, *arguments, port=None, held=False):
    """Ranks as launchers set them up, each node at an address of its own."""
    port, processes = port or free_port(), []
    for node in range(num_nodes):
        for local_rank in range(ranks_per_node):
            variables = {
                "RANK": node * ranks_per_node + local_rank,
                "LOCAL_RANK": local_rank,
                "WORLD_SIZE": num_nodes * ranks_per_node,
                "LOCAL_WORLD_SIZE": ranks_per_node,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            if held:
                variables["TOY_HELD_UNTIL"] = folder / "go"
            log = (folder / f"log.{node}.{local_rank}.txt").open("a")
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(folder / "outputs"), *map(str, arguments)],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **{key: str(value) for key, value in variables.items()}},
                )
            )
    return processes


def logs(folder):
    return "\n".join(f"{path.name}\n{path.read_text()}" for path in sorted(folder.glob("log.*")))


def exit_codes(processes, timeout=120):
    deadline = time.monotonic() + timeout
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
