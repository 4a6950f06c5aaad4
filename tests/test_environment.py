"""What the scripts fetch: PyTorch of the smallest build that a machine can use, by whatever installer is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "environment.sh"
PYTHON = """#!/bin/bash
case "$*" in
  "-c import torch") exit {has_torch} ;;
  *"+cpu"*) echo "pip $*" >>"$CALLS"; exit {has_cpu_build} ;;
  *"install"*" uv") echo "pip $*" >>"$CALLS"; cp "$FAKES/uv.later" "$FAKES/uv"; exit 0 ;;
  *) echo "pip $*" >>"$CALLS" ;;
esac
"""
UV = """#!/bin/bash
echo "uv $*" >>"$CALLS"
exit {code}
"""


def fetched(
    folder: Path,
    *,
    torch: bool = False,
    cpu_build: bool = True,
    uv: int | None = None,
    later_uv: int = 0,
    gpu: bool = False,
) -> list[str]:
    """What is asked of which installer; `uv` is the exit code of one that is there."""
    fakes = {"python": PYTHON.format(has_torch=int(not torch), has_cpu_build=int(not cpu_build))}
    fakes["uv.later"] = UV.format(code=later_uv)
    if uv is not None:
        fakes["uv"] = UV.format(code=uv)
    if gpu:
        fakes["nvidia-smi"] = "#!/bin/bash\n"
    for name, text in fakes.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for tool in ("bash", "cp", "dirname", "cat"):
        (folder / tool).symlink_to(next(p for p in (Path("/usr/bin") / tool, Path("/bin") / tool) if p.exists()))
    calls = folder / "calls"
    environment = {"PATH": str(folder), "FAKES": str(folder), "CALLS": str(calls), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [folder / "bash", "-euc", f". '{SCRIPT}'; install_torch"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("installed" in done.stdout) is not torch, "what is fetched is said, with its size"
    return (
        [line.split(" --disable-pip-version-check ")[-1] for line in calls.read_text().splitlines()]
        if calls.exists()
        else []
    )


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        ({"torch": True}, []),
        ({}, ["torch==2.13.0+cpu"]),
        ({"uv": 0}, ["--torch-backend cpu"]),
        ({"uv": 1}, ["--torch-backend cpu", "torch==2.13.0+cpu"]),
        ({"cpu_build": False}, ["torch==2.13.0+cpu", "uv", "--torch-backend cpu"]),
        ({"cpu_build": False, "later_uv": 1}, ["torch==2.13.0+cpu", "uv", "--torch-backend cpu", "torch==2.13.0"]),
        ({"gpu": True}, ["torch==2.13.0"]),
        ({"gpu": True, "uv": 0}, ["--torch-backend auto"]),
    ],
    ids=str,
)
def test_the_smallest_build_is_fetched(machine, wanted, tmp_path):
    calls = fetched(tmp_path, **machine)
    assert len(calls) == len(wanted)
    assert all(call.endswith(end) for call, end in zip(calls, wanted, strict=True)), calls
