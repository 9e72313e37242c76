#!/bin/sh
# Reproduces this folder's numbers: sh results/spectrum/run.sh path/to/cifar10.zip
# About 90 minutes of one CPU core: nine image world models and one run of each other family, all on the same 20,000
# images, shown once. Stopped and started again, it goes on where it was. With AdamW for all, as the other families have
# it. The committed numbers are of before 2026-11-26, when `cifar10` had masks of blocks; today it sees random patches.
set -eu
data=${1:?give the path of cifar10.zip}
iwm sweep cifar10 --data.source "$data" --out runs/spectrum --jobs "${JOBS:-2}" --speed.threads 1 \
    --predictors 2x256,1x128 --encoder.width 128 --encoder.heads 4 \
    --recipes ijepa-cifar10,mae-cifar10,pixel-world-cifar10,moco-cifar10,byol-cifar10 \
    --optim.kind adamw --optim.lr 1.5e-3 --images 20000 --optim.epochs 1 --optim.warmup-epochs 0.2 --log-every 125 --save-every 125 \
    --world-images 32 --eval-images 5000 2000 --attentive-epochs 10 \
    --finetune-epochs 3 --finetune-views 1 --finetune-lrs 1e-3 --finetune-ratios 1
