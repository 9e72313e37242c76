#!/bin/sh
# Reproduces this folder's numbers: sh results/spectrum/run.sh path/to/cifar10.zip
# About an hour on two CPU cores. Stopped and started again, it goes on where it was.
set -eu
data=${1:?give the path of cifar10.zip}
iwm sweep cifar10 --data.source "$data" --out runs/spectrum --jobs 2 --speed.threads 1 \
    --predictors 4x96,4x192 --encoder.width 128 --encoder.heads 4 --optim.batch-size 32 --optim.lr-batch 32 \
    --images 20000 --optim.epochs 1 --optim.warmup-epochs 0.2 --log-every 125 --save-every 125 \
    --eval-images 5000 2000 --attentive-epochs 10 \
    --finetune-epochs 8 --finetune-views 2 --finetune-lrs 1e-3 3e-3 --finetune-ratios 1
