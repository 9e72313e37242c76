#!/bin/sh
# EuroSAT for long: an encoder 256 wide, 60 passes of the 5,000 training images, measured on the 1,000 test images; the
# world model with half of its views jittered, and the I-JEPA-style recipe, which has no photometry.
#   sh results/long/eurosat.sh path/to/eurosat.zip
# One core, an hour each, and half an hour more for the measurements; stopped and started again, it goes on where it
# was. RECIPES chooses one.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
speed="--speed.threads 1"
. "$here/../once.sh"
for recipe in ${RECIPES:-eurosat ijepa-style-eurosat}; do
    at=runs/long-$recipe
    case $recipe in
    eurosat) change="--actions.jitter-probability 0.5" baselines= ;;
    *) change= baselines=--no-baselines ;; # the random encoder is the same
    esac
    iwm pretrain $recipe --data.source "$eurosat" --out $at --seed 0 --encoder.width 256 --encoder.heads 8 $change \
        --optim.epochs 60 --log-every 156 --probe-every 5 $speed
    test $recipe != eurosat || once world-eurosat.json iwm world $at --data "$eurosat" $speed
    once probe-linear-layers4-eurosat.json iwm probe $at --data "$eurosat" --layers all $baselines $speed
    for predictor in pretrained random; do
        once finetune-predictor-$predictor-eurosat.json iwm finetune $at --data "$eurosat" --train predictor \
            --predictor $predictor --epochs 20 --views 8 --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 --search-epochs 3 --no-baselines $speed
    done
    mkdir -p "$here/$recipe/eval"
    cp $at/config.yaml $at/metrics.jsonl "$here/$recipe"
    cp $at/eval/*.json "$here/$recipe/eval"
done
