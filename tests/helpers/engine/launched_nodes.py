"""Toy sweeps on several nodes, started as launchers would, each node at a loopback address of its own."""

from __future__ import annotations

import json
import os
import time

from helpers.engine.drivers import start_forked
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
            environment = {**os.environ, **{key: str(value) for key, value in variables.items()}}
            log = folder / f"log.{node}.{local_rank}.txt"
            processes.append(
                start_forked("toy_sweep", log, environment, [str(folder / "outputs"), *map(str, arguments)])
            )
    return processes


def start_node(
    folder,
    node,
    *,
    task_seconds=0.0,
    join_seconds=600.0,
    silence_seconds=60.0,
    nvidia_smi=None,
    agent_store=None,
    device="cpu",
    points=1,
    num_gpus="[2]",
    held=False,
):
    """One of two nodes with one rank, which is lost, or takes its driver for lost, after so much silence."""
    settings = {"task_seconds": task_seconds, "join_seconds": join_seconds, "silence_seconds": silence_seconds}
    settings |= {"device": device, "points": points, "num_gpus": num_gpus}
    settings["held_until"] = str(folder / "go") if held else None
    variables = {"RANK": node, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = agent_store or (folder / "port").read_text()
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True"} if agent_store else {}
    if nvidia_smi is not None:
        (folder / f"bin{node}").mkdir()
        (folder / f"bin{node}" / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        (folder / f"bin{node}" / "nvidia-smi").chmod(0o755)
        variables["PATH"] = f"{folder / f'bin{node}'}:{os.environ['PATH']}"
    environment = {**os.environ, **{key: str(value) for key, value in variables.items()}}
    arguments = [str(folder / "outputs"), json.dumps(settings)]
    return start_forked("impatient_sweep", folder / f"log.{node}.txt", environment, arguments)


def logs(folder):
    return "\n".join(f"{path.name}\n{path.read_text()}" for path in sorted(folder.glob("log.*")))


def exit_codes(processes, timeout=120):
    deadline = time.monotonic() + timeout
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
