#!/usr/bin/env bash
# Set up and run the tests, a file at a time in each of a few processes: three more than there are cores, for tests wait
# for trainings and clocks half of their time. Arguments go to pytest: `bash scripts/test.sh --all` adds what is long by
# nature, which continuous integration runs in a job of its own; `-m "not slow"` leaves out what takes ten seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
make_environment "test"
cores=$(getconf _NPROCESSORS_ONLN)
workers=$((cores < 4 ? cores + 3 : 6))
exec python -m pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder "$@"
