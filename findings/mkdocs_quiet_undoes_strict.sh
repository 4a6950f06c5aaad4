#!/usr/bin/env bash
# mkdocs build --strict --quiet passes pages that --strict refuses.
#
# Versions: mkdocs==1.6.1; CPU, Python 3.11.
# Expected: --quiet says less and decides the same: a link to a page that is not there is exit code 1 under
#   --strict.
# Seen: Exit code 0 and not a line. Strict mode counts the warnings that are logged, and --quiet sets the
#   level above them first.
# Output:
#   exit codes: {'--strict': 1, '--strict --quiet': 0}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet mkdocs==1.6.1
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("mkdocs").partition("+")[0] == "1.6.1"
import subprocess, sys
from pathlib import Path

Path("docs").mkdir()
Path("docs/index.md").write_text("[there](nowhere.md)")
Path("mkdocs.yml").write_text("site_name: probe")
codes = {}
for options in (["--strict"], ["--strict", "--quiet"]):
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", *options], capture_output=True, text=True)
    codes[" ".join(options)] = done.returncode
print("exit codes:", codes)
assert codes == {"--strict": 1, "--strict --quiet": 0}
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }
