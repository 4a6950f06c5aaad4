# Sourced by quickstart.sh and test.sh: an environment with the package in it, made once, then found again.
# With an environment active it is used; otherwise .venv in the project's folder.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

torch_version=2.13.0

# PyTorch of the build that this machine can use. Where there is no GPU, that for CUDA would be fetched for nothing; uv knows
# where PyTorch keeps its builds, and pip takes the one for CPUs where its index has it.
install_torch() {
  local pip="python -m pip install --quiet --disable-pip-version-check" with_uv
  if python -c 'import torch' 2>/dev/null; then
    return 0
  fi
  with_uv="uv pip install --quiet --python $(command -v python) torch==$torch_version --torch-backend"
  if command -v nvidia-smi >/dev/null 2>&1; then
    echo "fetching PyTorch for CUDA: 5.4 GB installed"
    if command -v uv >/dev/null 2>&1 && $with_uv auto; then
      return 0
    fi
    $pip "torch==$torch_version"
    return
  fi
  echo "fetching PyTorch for CPUs, as there is no NVIDIA driver: 0.8 GB installed"
  if command -v uv >/dev/null 2>&1 && $with_uv cpu; then
    return 0
  fi
  if $pip "torch==$torch_version+cpu" 2>/dev/null; then
    return 0
  fi
  echo "pip's index has no such build; trying uv (20 MB), which knows where it is"
  if ! command -v uv >/dev/null 2>&1 && $pip uv && $with_uv cpu; then
    return 0
  fi
  echo "not to be had: fetching the build that pip has, with CUDA 5.4 GB installed"
  $pip "torch==$torch_version"
}

make_environment() { # make_environment EXTRAS
  local extras=$1
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$project/.venv/bin/python" ]; then
      echo "making $project/.venv"
      "${PYTHON:-python3}" -m venv "$project/.venv" || {
        echo "error: no virtual environment could be made; install Python 3.10 or newer with its venv module" >&2
        return 1
      }
    fi
    # shellcheck disable=SC1091
    . "$project/.venv/bin/activate"
  fi
  python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "error: Python 3.10 or newer is needed; this is $(python --version 2>&1). Set PYTHON=/path/to/python3" >&2
    return 1
  }
  local prefix stamp
  prefix=$(python -c 'import sys; print(sys.prefix)')
  stamp="$prefix/.flopsfit-ds-$extras-$(cksum <"$project/pyproject.toml" | cut -d' ' -f1)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$project" ]; then
    return 0
  fi
  echo "installing (a minute or two, once)"
  install_torch || return 1
  python -m pip install --quiet --disable-pip-version-check -e "$project${extras:+[$extras]}" || return 1
  echo "$project" >"$stamp"
}
