"""`hardware`: the devices that a spec can name, and what this machine is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import typer

from flopsfit_ds.base.hardware import DEVICES, Device, Machine, read_machine
from flopsfit_ds.base.units import format_bytes
from flopsfit_ds.cli.options import AsJson
from flopsfit_ds.cli.prose import say, terminal_width

_WIDE = 72
"""Columns that the table of devices takes."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def hardware(as_json: AsJson = False) -> None:  # pyright: ignore[reportUnusedFunction]
        """Show what this machine is, and the devices that `hardware.device` of a spec can name.

        Example: flopsfit-ds hardware
        """
        machine = read_machine()
        if as_json:
            devices = [asdict(device) for device in DEVICES]
            print(json.dumps({"machine": asdict(machine), "devices": devices}, indent=1))
            return
        say(f"this machine: {_words(machine)}")
        if machine.unknown_gpus is not None:
            print(f"not counted, for nvidia-smi tells no memory of it: {machine.unknown_gpus}")
        width = max(len(device.name) for device in DEVICES)
        if (terminal_width() or _WIDE) < _WIDE:
            _print_narrow(DEVICES)
            return
        print(f"\n{'device':{width}s}  {'memory':>10s}  {'bf16':>12s}  {'fp32':>12s}  to a peer")
        for device in DEVICES:
            rates = (f"{rate / 1e12:.4g} TFLOP/s" for rate in (device.bf16_flops, device.fp32_flops))
            cells = "  ".join(f"{rate:>12s}" for rate in rates)
            print(
                f"{device.name:{width}s}  {format_bytes(device.memory_bytes):>10s}  {cells}  "
                f"{device.intra_node_bandwidth / 1e9:.4g} GB/s"
            )
        say("another one is custom, with device_memory, peak_flops, gpus_per_node and intra_node_bandwidth")


def _print_narrow(devices: Sequence[Device]) -> None:
    """Two lines a device, for a terminal that the table does not fit."""
    for device in devices:
        print(f"{device.name}: {format_bytes(device.memory_bytes)}")
        rates = f"bf16 {device.bf16_flops / 1e12:.4g}, fp32 {device.fp32_flops / 1e12:.4g} TFLOP/s"
        say(f"  {rates}; {device.intra_node_bandwidth / 1e9:.4g} GB/s to a peer")


def _words(machine: Machine) -> str:
    host = f"{format_bytes(machine.host_memory_bytes)} of host memory"
    if machine.device_name == "cpu":
        return f"no GPU; {machine.num_devices} CPU slots, {host}"
    memory = "" if machine.device_memory_bytes is None else f" of {format_bytes(machine.device_memory_bytes)}"
    return f"{machine.num_devices} {machine.device_name}{memory}, {host}"
