#!/bin/sh
# What a predictor knows of changes, over three pretraining seeds of EuroSAT's recipe: which change was made between two
# images (with the strongest simple answer, searching among pictures, beside it), what undoing a corruption in latent
# space is worth to a probe, two changes in a row, and features averaged over actions.
#   sh results/seeds/looking.sh path/to/eurosat.zip
# After run.sh, whose pretrainings it takes. SEEDS chooses some.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
. "$here/../once.sh"
for seed in ${SEEDS:-0 1 2}; do
    at=runs/looking/seed$seed
    mkdir -p $at "$here/looking/seed$seed"
    cp -r runs/seeds/eurosat-seed$seed/config.yaml runs/seeds/eurosat-seed$seed/model $at
    once infer-eurosat.json iwm infer $at --data "$eurosat" --seed $seed --speed.threads 1
    once undo-eurosat.json iwm undo $at --data "$eurosat" --images 250 --seed $seed --speed.threads 1
    once look-eurosat.json iwm look $at --data "$eurosat" --seed $seed --speed.threads 1
    cp $at/eval/*.json "$here/looking/seed$seed"
done
