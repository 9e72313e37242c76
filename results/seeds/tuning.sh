#!/bin/sh
# Head, predictor, encoder or both: what finetuning each brings, over three pretraining seeds of EuroSAT's recipe. All
# on fresh crops, for 14 epochs, over one grid of learning rates, the head with one more; a network from scratch is
# trained like the encoder, without layer decay.
#   sh results/seeds/tuning.sh path/to/eurosat.zip
# After run.sh, whose pretrainings it takes. One core, 45 minutes a seed; SEEDS chooses some.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
how="--epochs 14 --search-epochs 2 --views 0 --ratios 1 --speed.threads 1"
for seed in ${SEEDS:-0 1 2}; do
    at=runs/tuning/seed$seed
    suffix=eurosat
    test $seed = 0 || suffix=seed$seed-eurosat
    mkdir -p $at
    cp -r runs/seeds/eurosat-seed$seed/config.yaml runs/seeds/eurosat-seed$seed/model $at
    started=$at/eval/finetune-predictor-pretrained-$suffix
    for train in ${PARTS:-head predictor encoder both}; do
        flags="--train $train --lrs 3e-4 1e-3 3e-3 1e-2"
        test $train != head || flags="--train $train --lrs 3e-4 1e-3 3e-3 1e-2 3e-2"
        test $train != both || flags="$flags --start $started"
        test $train = encoder || flags="$flags --no-baselines"
        ls $at/eval/finetune-$train-*.json > /dev/null 2>&1 ||
            iwm finetune $at --data "$eurosat" --seed $seed $flags $how
    done
    mkdir -p "$here/tuning/seed$seed"
    cp $at/eval/*.json "$here/tuning/seed$seed"
done
