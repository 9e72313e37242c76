#!/bin/sh
# One predictor for three tasks against one predictor each, over three pretraining seeds of EuroSAT's recipe: 5,000
# labelled images of CIFAR-10, all of EuroSAT's and the embedded objects, all at 32 px (16 patches of the encoder).
#   sh results/seeds/multitask.sh path/to/eurosat.zip path/to/cifar10.zip
# After run.sh, whose pretrainings and part of CIFAR-10 it takes. SEEDS chooses some.
set -eu
eurosat=${1:?give eurosat.zip}
cifar10=${2:?give cifar10.zip}
here=$(dirname "$0")
how="--size 32 --epochs 4 --search-epochs 1 --views 4 --lrs 1e-4 3e-4 1e-3 3e-3 1e-2 --ratios 1 --speed.threads 1"
for seed in ${SEEDS:-0 1 2}; do
    at=runs/multitask/seed$seed
    mkdir -p $at "$here/multitask/seed$seed"
    cp -r runs/seeds/eurosat-seed$seed/config.yaml runs/seeds/eurosat-seed$seed/model $at
    ls $at/eval/multitask-*.json > /dev/null 2>&1 ||
        iwm multitask $at --task cifar10=runs/parts/cifar10-5000.npz --val cifar10="$cifar10" \
            --task eurosat="$eurosat" --task objects=sample-objects --seed $seed $how
    cp $at/eval/*.json "$here/multitask/seed$seed"
done
