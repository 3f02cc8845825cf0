#!/usr/bin/env bash
# Everything that waits for a GPU, in under nine minutes: one JSON file and one table.
#   bash bench/gpu.sh                  # needs torch and transformers, and no network
#   bash bench/gpu.sh --device cpu     # tiny, to see that it runs
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" bench/gpu.py --out "${OUT:-runs}/gpu.json" "$@"
