#!/bin/sh
# Segmentation: what head, predictor (pretrained and random), encoder and both bring when finetuned, over three
# pretraining seeds of EuroSAT's recipe, which never saw a street. Crops of 64 px (64 of its patches), the same fresh
# crops, epochs and grid of learning rates for all; "both" has the predictor's 20 epochs before its own, so predictor
# and encoder are finetuned for 40 epochs, too.
#   sh results/seeds/segment.sh path/to/camvid.zip
# After run.sh, whose pretrainings it takes. SEEDS chooses some.
set -eu
camvid=${1:?give camvid.zip}
here=$(dirname "$0")
how="--head linear --size 64 --search-epochs 5 --views 0 --ignore-index 11 --speed.threads 1"
how="$how --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1"
for seed in ${SEEDS:-0 1 2}; do
    at=runs/segment/seed$seed
    mkdir -p $at "$here/segment/seed$seed"
    cp -r runs/seeds/eurosat-seed$seed/config.yaml runs/seeds/eurosat-seed$seed/model $at
    while read -r result arm; do
        proof=miou
        test $result = encoder && proof=random_encoder_miou
        grep -qs "\"$proof\"" $at/eval/segment-$result-linear-*.json ||
            iwm segment $at --data "$camvid" --seed $seed --train $arm --epochs 20 $how < /dev/null
        cp $at/eval/*.json "$here/segment/seed$seed"
    done << ARMS
head head --no-baselines
predictor-pretrained predictor --no-baselines
predictor-random predictor --no-baselines --predictor random
encoder encoder
ARMS
    started=$(ls -d $at/eval/segment-predictor-pretrained-linear-*camvid)
    ls $at/eval/segment-both-*.json > /dev/null 2>&1 ||
        iwm segment $at --data "$camvid" --seed $seed --train both --start $started --no-baselines --epochs 20 $how
    cp $at/eval/*.json "$here/segment/seed$seed"
    long=runs/segment/seed$seed-long
    mkdir -p "$here/segment/seed$seed-long"
    for part in predictor encoder; do
        ls $long/eval/segment-$part-*.json > /dev/null 2>&1 ||
            iwm segment $at --out $long --data "$camvid" --seed $seed --train $part --no-baselines --epochs 40 $how
    done
    cp $long/eval/*.json "$here/segment/seed$seed-long"
done
