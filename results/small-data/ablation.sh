#!/bin/sh
# What goes wrong at small scale, one change at a time: sh results/small-data/ablation.sh path/to/cifar10.zip
# One pass over 16,000 of CIFAR-10's training images (500 steps of the cifar10 recipe, but with AdamW), measured on
# 4,000 others of them, three seeds; 4 to 9 minutes a run on one core of a CPU. Stopped and started again, it goes on
# where it was; VARIANTS="base dropped" SEEDS=0 does some of them. Kept here: variants with seed 0; base, paper, ijepa
# and muon with three, no-spread with two; not large-batch and muon-low.
set -eu
data=${1:?give the path of cifar10.zip}
here=$(dirname "$0")
short="--optim.epochs 1 --optim.warmup-epochs 0.1 --optim.kind adamw --optim.lr 1.5e-3 --speed.threads 1 --log-every 100 --save-every 500"
mkdir -p runs/ablation
test -e runs/ablation/part.npz || python "$here/part.py" "$data" runs/ablation/part.npz

settings() {
    case $1 in
    base) ;;
    paper) # its objective, masks, predictor, initialisation and teacher: the eight below at once, and its share of jittered views
        for one in no-spread token-norm last-layer slow-ema dropped feature small-init narrow; do settings $one; done
        echo --actions.jitter-probability 0.8
        ;;
    no-spread) echo --objective.variance 0 --objective.covariance 0 ;;       # neither variance nor covariance term
    token-norm) echo --objective.target-norm token ;;                        # the paper's target normalisation
    last-layer) echo --objective.target-layers 1 ;;                          # the last block's tokens only
    slow-ema) echo --optim.ema 0.996 ;;                                      # the paper's
    dropped) echo --masks.predict dropped --masks.queries 1 --masks.whole 0 ;;   # the paper's positions
    feature) echo --predictor.conditioning feature ;;                        # the paper's conditioning
    small-init) echo --predictor.init trunc_normal --encoder.init trunc_normal ;;   # standard deviation .02
    narrow) echo --predictor.depth 4 --predictor.width 96 ;;                 # half the encoder's width, as the paper's
    half-jitter) echo --actions.jitter-probability 0.5 ;;                    # half of the sources and targets keep their colours
    no-destruction) echo --actions.level jitter ;;                           # no grayscale, blur, solarisation
    muon) echo --optim.kind muon --optim.lr 3e-3 ;;                          # the recipe as it is now
    muon-low) echo --optim.kind muon ;;                                      # at AdamW's rate
    adamw-high) echo --optim.lr 3e-3 ;;                                      # AdamW at Muon's
    muon-ijepa) settings ijepa && echo --optim.kind muon --optim.lr 3e-3 ;;  # I-JEPA with the same optimiser
    large-batch) echo --optim.batch-size 128 --optim.lr-batch 128 ;;         # a quarter of the steps at the same rate
    ijepa) echo --actions.level jitter --actions.jitter-probability 0 --masks.predict dropped --masks.queries 1 --masks.whole 0 \
        --predictor.conditioning none ;;                                     # no photometry, nothing to be told
    esac
}

for seed in ${SEEDS:-0 1 2}; do
    for variant in ${VARIANTS:-base paper ijepa no-spread token-norm last-layer dropped feature small-init narrow slow-ema muon muon-low adamw-high muon-ijepa large-batch half-jitter no-destruction}; do
        run=runs/ablation/$variant-$seed
        kept=$here/ablation/$variant-$seed
        test ! -e "$kept/eval/probe-linear-part.json" || continue
        # shellcheck disable=SC2046,SC2086
        iwm pretrain cifar10 --masks.sampler exact --data.source runs/ablation/part.npz --out "$run" --seed $seed $short $(settings "$variant")
        iwm world "$run" --data runs/ablation/part.npz --images 24 --speed.threads 1
        controls=--no-baselines
        test "$variant" != base || controls=--baselines
        iwm probe "$run" --data runs/ablation/part.npz --kind linear $controls --speed.threads 1
        mkdir -p "$kept/eval"
        cp "$run/metrics.jsonl" "$run/config.yaml" "$kept"
        cp "$run"/eval/*.json "$kept/eval"
        rm -r "$run"
    done
done
