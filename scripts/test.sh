#!/usr/bin/env bash
# Set up and run the tests, a file at a time on each of up to four cores. Arguments go to pytest, for example:
# bash scripts/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
make_environment "test"
exec python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
