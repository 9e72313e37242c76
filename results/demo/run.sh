#!/bin/sh
# Reproduces this folder's numbers. The demo and, outside it, pretrained against random predictor over three seeds (those kept in
# seeds/ are of an earlier demo, by AdamW).
set -eu
iwm demo --out runs/demo
iwm world runs/demo --data sample-objects --frozen-random-twin --speed.threads 1
for seed in 0 1 2; do
    for predictor in pretrained random; do
        iwm finetune runs/demo --data sample-objects --train predictor --predictor $predictor --seed $seed \
            --views 2 --lrs 1e-3 3e-3 --epochs 4 --no-baselines
    done
done
