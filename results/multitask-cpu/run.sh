#!/bin/sh
# Reproduces this folder's numbers: sh results/multitask-cpu/run.sh path/to/cifar10.zip path/to/eurosat.zip
# The run is that of results/cifar10-cpu; 5,000 training images of CIFAR-10, all of EuroSAT's, and the embedded objects
# at 32 px.
set -eu
cifar10=${1:?give the path of cifar10.zip} eurosat=${2:?give the path of eurosat.zip}
mkdir -p runs/parts
test -e runs/parts/cifar10.npz || python "$(dirname "$0")/../small-data/part.py" "$cifar10" runs/parts/cifar10.npz 5000 0
iwm multitask runs/cifar10 --task cifar10=runs/parts/cifar10.npz --val cifar10="$cifar10" --task eurosat="$eurosat" \
    --task objects=sample-objects --epochs 2 --views 1 --lrs 1e-3 --ratios 1 --speed.threads 1
