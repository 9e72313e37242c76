#!/bin/sh
# Accuracy against the number of finetuned parameters (figure 3 of the paper), over three pretraining seeds of EuroSAT's
# recipe: one and both predictor blocks, pretrained and random, against all encoder blocks, of which one predictor block
# has as many parameters. All on fresh crops, for 4 epochs, over one grid of learning rates.
#   sh results/seeds/efficiency.sh path/to/eurosat.zip
# After run.sh, whose pretrainings it takes. SEEDS chooses some.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
how="--epochs 4 --search-epochs 1 --views 0 --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 --speed.threads 1"
how="$how --depths 1 2 --blocks 4"
for seed in ${SEEDS:-0 1 2}; do
    at=runs/efficiency/seed$seed
    mkdir -p $at "$here/efficiency/seed$seed"
    cp -r runs/seeds/eurosat-seed$seed/config.yaml runs/seeds/eurosat-seed$seed/model $at
    ls $at/eval/efficiency-*.json > /dev/null 2>&1 || iwm efficiency $at --data "$eurosat" --seed $seed $how
    cp $at/eval/*.json "$here/efficiency/seed$seed"
done
