"""The script that changes one line at a time, where it can judge nothing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the script copies what git knows of the project")
def test_where_tests_fail_without_any_change_it_says_so_and_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    mutants = importlib.import_module("mutants")
    table = tmp_path / "mutants.tsv"
    table.write_text("fit/losses.py\t_WIDE = 40.0\t_WIDE = 4.0\ttests/there_is_none.py\n")
    monkeypatch.setattr(mutants, "TABLE", table)
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--jobs", "1"])
    with pytest.raises(SystemExit) as ended:
        mutants.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert "without any change" in err
    assert "no change was judged" in out
    assert "1 not tried" in out
