#!/bin/sh
# Reproduces this folder's numbers: sh results/cifar10-cpu/run.sh path/to/cifar10.zip
# Stopped and started again, it goes on where it was.
set -eu
data=${1:?give the path of cifar10.zip}
iwm pretrain cifar10 --data.source "$data" --out runs/cifar10 --speed.threads 1 --log-every 500 --save-every 500 --probe-every 2
iwm doctor runs/cifar10
iwm world runs/cifar10 --data "$data" --frozen-random-twin
iwm probe runs/cifar10 --data "$data" --kind linear
iwm probe runs/cifar10 --data "$data" --kind knn
iwm report runs/cifar10
