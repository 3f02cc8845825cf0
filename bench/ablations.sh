#!/usr/bin/env bash
# The method with one part left out at a time, five seeds each on the embedded model, two runs at a time. Started again, it
# goes on where it was; then it prints the table, in which each row is paired with `full` seed by seed.
#   bash bench/ablations.sh [DIR]        DIR: runs/ablations
set -eu
cd "$(dirname "$0")/.."
dir=${1:-runs/ablations}
mkdir -p "$dir"
python bench/ablations.py commands "$dir" | OMP_NUM_THREADS=1 xargs -P 2 -d '\n' -I{} bash -c '{}'
python bench/ablations.py table "$dir"
