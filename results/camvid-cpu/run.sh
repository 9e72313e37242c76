#!/bin/sh
# Reproduces this folder's numbers: sh results/camvid-cpu/run.sh path/to/camvid.zip (367 training, 101 validation
# images)
# The run is that of results/cifar10-cpu, which has never seen a street; 160 x 120 pixels are 1,200 of its patches.
set -eu
data=${1:?give the path of camvid.zip}
common="--ignore-index 11 --speed.threads 1"
iwm segment runs/cifar10 --data "$data" --train head --head linear --epochs 20 $common
iwm segment runs/cifar10 --data "$data" --train head --head upernet --epochs 10 $common
small="--head linear --size 64 --epochs 10 --ratios 1"
iwm segment runs/cifar10 --data "$data" --train head --lrs 1e-3 $small $common
iwm segment runs/cifar10 --data "$data" --train predictor --lrs 1e-3 $small $common
iwm segment runs/cifar10 --data "$data" --train encoder --lrs 1e-3 $small $common
iwm segment runs/cifar10 --data "$data" --train both --lrs 3e-4 --no-baselines $small $common \
    --start runs/cifar10/eval/segment-predictor-pretrained-linear-camvid
