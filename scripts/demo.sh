#!/usr/bin/env bash
# All the set-up, then the main job: bash scripts/demo.sh [key=value ...], as of `dforce demo --help`.
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec dforce demo "$@"
