#!/usr/bin/env bash
# The method with one part left out at a time, three seeds each on the embedded model, two runs at a time: about
# half an hour on two cores. Started again, it goes on where it was; then it prints the table.
#   bash bench/ablations.sh [DIR]        DIR: runs/ablations
set -eu
cd "$(dirname "$0")/.."
dir=${1:-runs/ablations}
mkdir -p "$dir"
python bench/ablations.py commands "$dir" | OMP_NUM_THREADS=1 xargs -P 2 -d '\n' -I{} bash -c '{}'
python bench/ablations.py table "$dir"
