#!/bin/sh
# What a finetuned predictor should be asked (table 3 of the paper): the student's tokens instead of the EMA encoder's,
# random actions instead of the null action, one query instead of all; each apart, over three pretraining seeds of
# EuroSAT's recipe.
#   sh results/seeds/task.sh path/to/eurosat.zip
# After run.sh, whose pretrainings it takes and whose finetuning is the fourth arm. One core, 13 to 25 minutes a seed;
# SEEDS chooses some.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
how="--epochs 4 --search-epochs 2 --views 2 --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 --no-baselines --speed.threads 1"
for seed in ${SEEDS:-0 1 2}; do
    while read -r arm change; do
        at=runs/task/$arm-seed$seed
        mkdir -p $at "$here/task/$arm-seed$seed"
        cp -r runs/seeds/eurosat-seed$seed/config.yaml runs/seeds/eurosat-seed$seed/model $at
        ls $at/eval/finetune-*.json > /dev/null 2>&1 ||
            iwm finetune $at --data "$eurosat" --train predictor --seed $seed $change $how < /dev/null
        cp $at/eval/*.json "$here/task/$arm-seed$seed"
    done << ARMS
student --student
random-action --action random
one-query --queries one
ARMS
done
