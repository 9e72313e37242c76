#!/bin/sh
# Reproduces this folder's numbers: sh results/cifar10-cpu/run.sh path/to/cifar10.zip
# Stopped and started again, it goes on where it was. About 75 minutes on one core (two runs fit two cores at once): 350,000 views
# of corrupted, masked sources, then 100,000 of which every other step's are clean and whole. The recipe now mixes them from the start.
set -eu
data=${1:?give the path of cifar10.zip}
first="--masks.whole 0 --speed.threads 1 --log-every 500 --save-every 500 --probe-every 2"
then="--init runs/cifar10-first --masks.whole 0.5 --optim.lr 7e-4 --optim.warmup-epochs 0.05 --speed.threads 1 --log-every 200 --save-every 500"
# shellcheck disable=SC2086
iwm pretrain cifar10 --data.source "$data" --out runs/cifar10-first $first
test -e runs/cifar10/config.yaml || iwm pretrain cifar10 --data.source "$data" --out runs/cifar10 --optim.epochs 1 $then
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
iwm report runs/cifar10
