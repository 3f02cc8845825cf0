#!/usr/bin/env bash
# The method with one part left out at a time: three seeds each on the embedded model, two runs at a time,
# about half an hour on two cores. Started again, it goes on where it was; then it prints the table.
#   bash bench/ablations.sh [DIR]        DIR: runs/ablations
set -eu
cd "$(dirname "$0")/.."
dir=${1:-runs/ablations}
mkdir -p "$dir"
one() {
    name=$1 seed=$2 dir=$3
    flag=$([ "$name" = full ] || echo "--$name")
    [ "$name" = shuffled_order ] && flag="--order shuffled"
    OMP_NUM_THREADS=1 python selfplay.py --preset ablation --seed "$seed" --run_dir "$dir/$name-$seed" $flag \
        >"$dir/$name-$seed.log" 2>&1 || echo "$name, seed $seed failed: see $dir/$name-$seed.log"
}
export -f one
for seed in 0 1 2; do
    for name in full shared_weights freeze_generator no_difficulty rectangular_band \
                shuffled_order no_judge no_grounding no_cross_verification strict_values; do
        echo "$name" "$seed" "$dir"
    done
done | xargs -P 2 -L 1 bash -c 'one "$@"' one
python bench/ablations_table.py "$dir"
