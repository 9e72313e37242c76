#!/bin/sh
# Reproduces this folder's numbers: sh results/cifar10-cpu/run.sh path/to/cifar10.zip
# Stopped and started again, it goes on where it was. About 90 minutes on one core (two runs fit two cores at once):
# 350,000 views of corrupted, masked sources, then 100,000 of which every other step's are clean and whole. The recipe
# now mixes them from the start.
set -eu
data=${1:?give the path of cifar10.zip}
first="--optim.kind adamw --optim.lr 1.5e-3 --masks.whole 0 --speed.threads 1 --log-every 500 --save-every 500 --probe-every 2"
then="--init runs/cifar10-first --masks.whole 0.5 --optim.kind adamw --optim.lr 7e-4 --optim.warmup-epochs 0.05 --speed.threads 1 --log-every 200 --save-every 500"
# shellcheck disable=SC2086
iwm pretrain cifar10 --masks.sampler exact --data.source "$data" --out runs/cifar10-first $first
test -e runs/cifar10/config.yaml || iwm pretrain cifar10 --masks.sampler exact --data.source "$data" --out runs/cifar10 --optim.epochs 1 $then
iwm pretrain --config runs/cifar10/config.yaml --optim.epochs 2 --out runs/cifar10
iwm doctor runs/cifar10
for run in cifar10-first cifar10; do
    iwm world runs/$run --data "$data" --frozen-random-twin
    iwm probe runs/$run --data "$data" --kind linear
    iwm probe runs/$run --data "$data" --kind knn
done
iwm infer runs/cifar10 --data "$data" --speed.threads 1
iwm undo runs/cifar10 --data "$data" --images 250 --speed.threads 1
iwm look runs/cifar10 --data "$data" --speed.threads 1

# Finetuning: the predictor on all training images (36 minutes of one core), and every way on 5,000 of them (an hour).
fit="--views 2 --lrs 1e-3 --ratios 1 --speed.threads 1"
part=runs/parts/cifar10-5000.npz
mkdir -p runs/parts
test -e $part || python "$(dirname "$0")/../small-data/part.py" "$data" $part 5000 0
# shellcheck disable=SC2086
iwm finetune runs/cifar10 --data "$data" --train predictor --epochs 3 --no-baselines $fit
for seed in 0 1 2; do
    for predictor in pretrained random; do
        # shellcheck disable=SC2086
        iwm finetune runs/cifar10 --data $part --val "$data" --train predictor --predictor $predictor --epochs 6 --no-baselines --seed $seed $fit
    done
done
# shellcheck disable=SC2086
iwm finetune runs/cifar10 --data $part --val "$data" --train head --epochs 6 --no-baselines $fit
iwm finetune runs/cifar10 --data $part --val "$data" --train encoder --epochs 6 --views 0 --lrs 1e-3 --ratios 1 --speed.threads 1
iwm finetune runs/cifar10 --data $part --val "$data" --train both --start runs/cifar10/eval/finetune-predictor-pretrained-cifar10-5000 \
    --epochs 3 --views 0 --lrs 3e-4 --ratios 1 --no-baselines --speed.threads 1
iwm report runs/cifar10
