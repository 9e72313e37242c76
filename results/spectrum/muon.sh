#!/bin/sh
# Conditioning, difficulty and capacity at 1,500 steps by Muon, over pretraining seeds:
#   sh results/spectrum/muon.sh path/to/cifar10.zip
# Seed 0 has all nine cells, seeds 1 and 2 the corners of difficulty and capacity. One core, 11 to 16 minutes a cell.
# Stopped and started again, it goes on where it was; SEEDS chooses some. Several at once share the cells between them.
set -eu
data=${1:?give the path of cifar10.zip}
here=$(dirname "$0")
for seed in ${SEEDS:-0 1 2}; do
    cells=
    [ "$seed" = 0 ] || cells="--conditionings adaln --levels jitter,strong"
    # shellcheck disable=SC2086
    iwm sweep cifar10 --data.source "$data" --out "runs/claims-$seed" --seed "$seed" --predictors 2x256,1x128 $cells \
        --images 16000 --optim.epochs 3 --log-every 250 --eval-images 10000 10000 --world-images 64 \
        --finetune-epochs 0 --attentive-epochs 0 --speed.threads 1
    mkdir -p "$here/muon/seed$seed"
    cp "runs/claims-$seed/sweep.json" "$here/muon/seed$seed"
    [ "$seed" != 0 ] || cp "runs/claims-$seed/tables.png" "runs/claims-$seed/figure-5.png" "$here/muon/seed$seed"
done
