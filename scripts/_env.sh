# Sourced by the other scripts: goes to the repository root and makes .venv ready with everything for development.
# Idempotent: a stamp in .venv holds the hash of what was installed. Needs Python >= 3.11 (or PYTHON=/path/to/one).
#
# constraints.txt pins torch by its public version: a machine whose index offers a CPU build of it gets that one; from
# PyPI on Linux the same line brings the CUDA build (about 2.3 GB), with or without a GPU. To have the CPU build there,
# set DFORCE_TORCH_INDEX=https://download.pytorch.org/whl/cpu before the first call.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$name"; return; fi
  done
  echo "dforce needs Python 3.11 or newer; none was found. Install one, or set PYTHON=/path/to/python3.11" >&2
  return 1
}

stamp=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/dforce-stamp 2>/dev/null)" != "$stamp" ]; then
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv || { rm -rf .venv; echo "on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
  fi
  if [ -n "${DFORCE_TORCH_INDEX:-}" ]; then  # alone, so that the extra index is not asked for every other package
    .venv/bin/python -m pip install --quiet --index-url "$DFORCE_TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
  fi
  echo "installing (a minute or two; once)"
  .venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
  echo "$stamp" > .venv/dforce-stamp
fi
export PATH="$PWD/.venv/bin:$PATH"
