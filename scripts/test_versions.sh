#!/bin/bash
# Which versions of PyTorch, DeepSpeed and Accelerate the simulation of memory and the training run on: a table.
#
#   scripts/test_versions.sh                                  the oldest of each, this project's own, and the newest
#   scripts/test_versions.sh "2.11.0 0.19.8 1.15.0" ...       these rows: torch, deepspeed, accelerate; `newest` is a version
#
# Each row is installed into an environment of its own, which is removed after it: a build for CUDA takes 6 GiB of disk
# and some minutes. Needs the package registry; no part of CI. FOLDER says where the environments go; KEEP=1 leaves them.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
folder=${FOLDER:-$(mktemp -d)}
tests=(
  tests/simulate/test_self_test.py
  tests/simulate/test_simulation.py
  tests/simulate/test_against_real_cpu.py
  tests/simulate/test_server.py
  tests/train/test_traps.py
  tests/train/test_stages.py
  tests/train/test_foreign_training.py
)
if [ $# -eq 0 ]; then
  set -- "2.11.0 0.19.4 1.10.0" "2.13.0 0.19.8 1.15.0" "2.13.0 0.19.4 1.15.0" "2.13.0 0.19.8 1.10.0" \
    "2.13.0 newest newest" "newest newest newest"
fi

wanted() { # wanted NAME VERSION: what pip is asked for
  if [ "$2" = newest ]; then echo "$1"; else echo "$1==$2"; fi
}

test_row() { # test_row TORCH DEEPSPEED ACCELERATE: one line of the table
  local place="$folder/torch-$1-deepspeed-$2-accelerate-$3"
  mkdir -p "$place"
  local python="$place/bin/python" log="$place.log" shown
  {
    "${PYTHON:-python3}" -m venv "$place" &&
      "$python" -m pip install --quiet "$(wanted torch "$1")" &&
      "$python" -m pip install --quiet --upgrade "$(wanted torch "$1")" "$(wanted deepspeed "$2")" \
        "$(wanted accelerate "$3")" transformers numpy scipy pydantic pyyaml typer rich jinja2 matplotlib psutil \
        filelock submitit pyarrow pytest pytest-timeout pytest-xdist hypothesis jsonschema &&
      "$python" -m pip install --quiet --no-deps . # what the project says of itself; the code that runs is this folder's
  } >"$log" 2>&1 || { echo "$1 | $2 | $3 | | not installed: $(tail -n 1 "$log" | cut -c 1-90)"; return; }
  shown=$("$python" -c 'import importlib.metadata as m, sys
print(*(m.version(n) for n in ("torch", "deepspeed", "accelerate")), sys.version.split()[0], sep=" | ")')
  DS_ACCELERATOR=cpu XDG_CACHE_HOME="$place/cache" PYTHONPATH="$PWD" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    "$python" -m pytest -q -p no:cacheprovider "${tests[@]}" >"$log" 2>&1
  echo "$shown | $(tail -n 1 "$log" | sed 's/^=* *//; s/ *=*$//')"
  grep -E '^(FAILED|ERROR) ' "$log" | cut -c 1-150 | sed 's/^/    /'
  [ -n "${KEEP:-}" ] || rm -rf "$place"
}

echo "torch | deepspeed | accelerate | python | tests"
for row in "$@"; do
  # shellcheck disable=SC2086
  test_row $row
done
