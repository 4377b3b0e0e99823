#!/usr/bin/env bash
# All the set-up, then style, types and tests: bash scripts/test.sh [pytest arguments].
unset PYTHONDONTWRITEBYTECODE  # or every process of a test compiles the package anew
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
ruff check .
mypy
exec python -m pytest "$@"
