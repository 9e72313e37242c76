#!/bin/sh
# What the frontier puts ahead on CIFAR-10, together and for long: a quarter of the patches seen at random (the recipe
# by now) and an encoder 256 wide; 13 passes of the 50,000 training images, measured on the test set.
#   sh results/long/run.sh path/to/cifar10.zip
# One core, 100 minutes, and four hours more for the measurements; stopped and started again, it goes on where it was.
# "half" was made by hand: the run was stopped at step 7,639, its folder copied, and the copy gone on with by the same
# command with --optim.steps 10000 in the place of --optim.epochs 13. No control has the same time: see
# docs/small-data.md.
set -eu
cifar10=${1:?give cifar10.zip}
here=$(dirname "$0")
speed="--speed.threads 1"
part=runs/parts/cifar10-5000.npz
at=runs/long
mkdir -p runs/parts
test -e $part || python "$here/../small-data/part.py" "$cifar10" $part 5000 0
. "$here/../once.sh"
iwm pretrain cifar10 --data.source "$cifar10" --out $at --seed 0 --encoder.width 256 --encoder.heads 8 --masks.sampler random \
    --optim.epochs 13 --log-every 200 --probe-every 2 $speed
once world-cifar10.json iwm world $at --data "$cifar10" $speed
once probe-linear-layers4-cifar10.json iwm probe $at --data "$cifar10" --layers all $speed
for predictor in pretrained random; do
    once finetune-predictor-$predictor-cifar10-5000.json iwm finetune $at --data $part --val "$cifar10" --train predictor \
        --predictor $predictor --epochs 20 --views 8 --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 --search-epochs 3 --no-baselines $speed
done
once finetune-predictor-pretrained-cifar10.json iwm finetune $at --data "$cifar10" --train predictor --epochs 12 --views 0 \
    --lrs 1e-3 3e-3 1e-2 --ratios 1 --search-epochs 2 --search-images 10000 --no-baselines $speed
mkdir -p "$here/whole/eval"
cp $at/config.yaml $at/metrics.jsonl "$here/whole"
cp $at/eval/*.json "$here/whole/eval"
# With all labels for half as long, beside a random predictor: each at the rate that it chose with 5,000.
mkdir -p runs/long-brief "$here/whole/brief"
cp -r $at/config.yaml $at/model runs/long-brief
at=runs/long-brief
for arm in "pretrained 3e-3" "random 1e-3"; do
    predictor=${arm% *}
    once finetune-predictor-$predictor-cifar10.json iwm finetune $at --data "$cifar10" --train predictor \
        --predictor $predictor --epochs 6 --views 0 --lrs ${arm#* } --ratios 1 --no-baselines $speed
done
cp $at/eval/*.json "$here/whole/brief"
