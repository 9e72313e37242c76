#!/bin/sh
# Reproduces this folder's numbers: sh results/eurosat-cpu/run.sh path/to/eurosat.zip (5,000 training, 1,000 test
# images)
# About an hour and a half on one core of a CPU. Stopped and started again, it goes on where it was. Equal budget, 14
# passes over the training images each: the equivariant setting and I-JEPA, with AdamW, as the recipes were then.
set -eu
data=${1:?give the path of eurosat.zip}
speed="--speed.threads 1"
fit="--epochs 4 --views 2 --lrs 1e-3 --ratios 0.1 1 --no-baselines"
for recipe in eurosat ijepa-eurosat; do
    run=runs/$recipe
    iwm pretrain $recipe --data.source "$data" --out $run --optim.kind adamw --optim.lr 1.5e-3 --log-every 200 --save-every 500 $speed
    iwm doctor $run || true # an ill run is measured all the same
    iwm world $run --data "$data" $speed
    for kind in linear knn attentive; do
        iwm probe $run --data "$data" --kind $kind $speed
    done
    iwm finetune $run --data "$data" --train predictor --predictor pretrained $fit $speed
done
iwm finetune runs/eurosat --data "$data" --train predictor --predictor random $fit $speed
iwm finetune runs/eurosat --data "$data" --train head $fit $speed
iwm finetune runs/eurosat --data "$data" --train encoder --epochs 6 --views 0 --lrs 1e-3 --ratios 1 $speed
iwm finetune runs/eurosat --data "$data" --train both --start runs/eurosat/eval/finetune-predictor-pretrained-eurosat \
    --epochs 3 --views 0 --lrs 3e-4 --ratios 1 --no-baselines $speed
iwm efficiency runs/eurosat --data "$data" --epochs 2 --views 2 --lrs 1e-3 --ratios 1 $speed
iwm report runs/eurosat
