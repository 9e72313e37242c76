#!/bin/sh
# What a pretrained predictor is worth beside a random one, over pretraining seeds: the equivariant, the invariant and the
# I-JEPA-style recipe on EuroSAT's 5,000 training images, 14 passes, each seed pretrained and finetuned anew.
#   sh results/seeds/run.sh path/to/eurosat.zip
# One core, 15 to 25 minutes a run; stopped and started again, it goes on where it was. SEEDS and RECIPES choose some.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
speed="--speed.threads 1"
once() {
    kept=$at/eval/$1
    shift
    test -e "$kept" || "$@"
}
for seed in ${SEEDS:-0 1 2}; do
    for recipe in ${RECIPES:-eurosat ijepa-style-eurosat eurosat-inv}; do
        at=runs/seeds/$recipe-seed$seed
        iwm pretrain $recipe --data.source "$eurosat" --out $at --seed $seed --log-every 546 --probe-every 4 $speed
        test $recipe = ijepa-style-eurosat || once world-eurosat.json iwm world $at --data "$eurosat" $speed
        once probe-linear-layers4-eurosat.json iwm probe $at --data "$eurosat" --layers all --no-baselines $speed
        once probe-attentive-eurosat.json iwm probe $at --data "$eurosat" --kind attentive --no-baselines $speed
        for predictor in pretrained random; do
            how=$predictor
            test $seed = 0 || how=$how-seed$seed
            once finetune-predictor-$how-eurosat.json iwm finetune $at --data "$eurosat" --train predictor --no-baselines \
                --predictor $predictor --seed $seed --epochs 4 --search-epochs 2 --views 2 --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 $speed
        done
        mkdir -p "$here/$recipe-seed$seed/eval"
        cp $at/config.yaml $at/metrics.jsonl "$here/$recipe-seed$seed"
        cp $at/eval/*.json "$here/$recipe-seed$seed/eval"
    done
done
