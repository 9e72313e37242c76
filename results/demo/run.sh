#!/bin/sh
# Reproduces this folder's numbers: the recipe demo as `iwm demo` ran it until it had three steps (docs/demo.md;
# stages.png is of today's) and, beside it, pretrained against random predictor over three seeds (those kept in seeds/
# are of an earlier demo, by AdamW).
set -eu
iwm pretrain demo --out runs/demo-recipe
iwm probe runs/demo-recipe --data sample-objects --kind linear
iwm probe runs/demo-recipe --data sample-objects --kind knn
for predictor in pretrained random; do
    iwm finetune runs/demo-recipe --data sample-objects --train predictor --predictor $predictor --views 2 --lrs 1e-3 3e-3 \
        --ratios 1.0 --epochs 5 --search-epochs 1 --no-baselines
done
iwm world runs/demo-recipe --data sample-objects --frozen-random-twin --speed.threads 1
for seed in 0 1 2; do
    for predictor in pretrained random; do
        iwm finetune runs/demo-recipe --data sample-objects --train predictor --predictor $predictor --seed $seed \
            --views 2 --lrs 1e-3 3e-3 --epochs 4 --no-baselines
    done
done
