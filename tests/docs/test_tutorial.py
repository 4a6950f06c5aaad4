"""The tutorial, from its first command to its last, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```bash\n(?P<body>.*?)^```$", re.M | re.S)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)  # a quarter of an hour is promised, on a machine with nothing else to do
def test_every_command_of_the_tutorial_does_what_it_says(tmp_path: Path):
    program = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    lines = [line for found in FENCE.finditer(PAGE.read_text()) if not found[1] for line in found["body"].splitlines()]
    assert len(lines) >= 8
    said = {}
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line.split()[1]] = done.stdout
    assert "next at 1e13 FLOPs" in said["sweep"]
    assert "15 of 15 runs done" in said["status"]
    assert "90% prediction interval" in said["predict"]
    assert (tmp_path / "outputs" / "first" / "report" / "index.html").is_file()
