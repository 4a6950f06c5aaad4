#!/usr/bin/env bash
# `ray.init()` in a driver replaces a handler that the program had set for SIGTERM.
#
# Versions: ray==2.60.0; CPU, Python 3.11.
# Expected: a program that writes a checkpoint at SIGTERM, as clusters ask it to, still does after `ray.init()`.
# Seen: its handler is gone; the process leaves with Ray's own, and nothing is written. `signal.signal` after
#   `ray.init()` takes it back.
# Output:
#   handler after ray.init(): not ours
#   handler set again, after SIGTERM: heard
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${FINDINGS_VENV:-}" ]; then
  FINDINGS_VENV=$folder/venv
  python3 -m venv "$FINDINGS_VENV"
  "$FINDINGS_VENV/bin/pip" install --quiet ray==2.60.0
fi
cd "$folder"
cat >probe.py <<'PYTHON'
from importlib.metadata import version

assert version("ray") == "2.60.0"
import logging, os, signal, time
import ray

heard = []


def ours(number, frame):
    heard.append(number)


signal.signal(signal.SIGTERM, ours)
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
kept = signal.getsignal(signal.SIGTERM) is ours
print("handler after ray.init():", "ours" if kept else "not ours")
signal.signal(signal.SIGTERM, ours)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.5)
print("handler set again, after SIGTERM:", "heard" if heard == [signal.SIGTERM] else "not heard")
ray.shutdown()
assert not kept and heard == [signal.SIGTERM]
PYTHON
"$FINDINGS_VENV/bin/python" probe.py 2>log || { tail -n 20 log >&2; exit 1; }
