#!/bin/sh
# The image world model (equivariant: cifar10, eurosat; invariant: cifar10-inv, eurosat-inv) and I-JEPA (no photometry,
# no action) at equally many views, 350,000 of CIFAR-10 and 70,000 of EuroSAT:
#   sh results/small-data/evidence.sh path/to/cifar10.zip path/to/eurosat.zip
# Beside them changes of the recipe at the same length: *-dropped, *-jitter5, *-mild, *-all. Of "cifar10" also three
# seeds of finetuning the predictor, pretrained and random, and of both equivariant runs the encoder finetuned and
# trained from scratch for as many views as the pretraining had. One core: a CIFAR-10 run takes 75 to 100 minutes, its
# evaluations 20 (of "cifar10" 75, and from scratch 100); a EuroSAT run 20 and 15. Stopped and started again, it goes on
# where it was (a measurement whose file is there is not made again); ONLY="cifar10 ijepa-cifar10" does some of the
# runs.
set -eu
cifar10=${1:?give the path of cifar10.zip}
eurosat=${2:?give the path of eurosat.zip}
here=$(dirname "$0")
speed="--speed.threads 1"
part=runs/parts/cifar10-5000.npz
mkdir -p runs/parts
test -e $part || python "$here/part.py" "$cifar10" $part 5000 0

. "$here/../once.sh"

for run in ${ONLY:-cifar10 ijepa-cifar10 cifar10-inv eurosat ijepa-eurosat eurosat-inv eurosat-dropped eurosat-jitter5 eurosat-mild ijepa-eurosat-all}; do
    at=runs/evidence/$run
    recipe=$run change=
    case $run in
    *-dropped) recipe=${run%-dropped} change="--masks.predict dropped --masks.queries 1 --masks.whole 0" ;; # the positions of I-JEPA
    *-jitter5) recipe=${run%-jitter5} change="--actions.jitter-probability 0.5" ;; # half of the views keep their colours
    *-mild) # three quarters of the views keep their colours, a quarter of the sources carries a destruction
        recipe=${run%-mild}
        change="--actions.jitter-probability 0.25 --actions.grayscale 0.1 --actions.blur 0.1 --actions.solarize 0.1"
        ;;
    *-all) recipe=${run%-all} change="--masks.predict all --masks.queries 0.375" ;; # the positions of the world model, no whole sources
    esac
    case $run in
    *cifar10*) data=$cifar10 set=cifar10 labels=cifar10-5000 kinds="linear knn" ;;
    *) data=$eurosat set=eurosat labels=eurosat kinds="linear knn attentive" ;;
    esac
    test -z "$change" || kinds=linear
    baselines=--no-baselines # pixels and the same encoder drawn anew: the first run of a data set says them for all
    test $run != $set || baselines=
    iwm pretrain $recipe --masks.sampler exact --data.source "$data" --out $at $change --log-every 500 --save-every 500 --probe-every 2 $speed
    iwm doctor $at || true # an ill run is measured all the same
    once world-$set.json iwm world $at --data "$data" $speed
    for kind in $kinds; do
        once probe-$kind-$set.json iwm probe $at --data "$data" --kind $kind $baselines $speed
    done
    fit="--views 2 --lrs 1e-3 --no-baselines $speed"
    seeds=0
    test $run != cifar10 || seeds="0 1 2"
    for predictor in pretrained random; do
        for seed in $seeds; do
            how=$predictor
            test $seed = 0 || how=$how-seed$seed
            if [ $set = cifar10 ]; then
                once finetune-predictor-$how-$labels.json iwm finetune $at --data $part --val "$data" --train predictor \
                    --predictor $predictor --seed $seed --epochs 6 --ratios 1 $fit
            else
                once finetune-predictor-$how-$labels.json iwm finetune $at --data "$data" --train predictor \
                    --predictor $predictor --seed $seed --epochs 4 --ratios 0.1 1 $fit
            fi
        done
    done
    if [ $run = cifar10 ]; then
        once finetune-predictor-pretrained-cifar10.json \
            iwm finetune $at --data "$data" --train predictor --epochs 3 --ratios 1 $fit # all 50,000 labels, 31 minutes
        once finetune-encoder-cifar10.json iwm finetune $at --data "$data" --train encoder --epochs 7 --views 0 --lrs 1e-3 --ratios 1 $speed
    elif [ $run = eurosat ]; then
        once finetune-encoder-eurosat.json iwm finetune $at --data "$data" --train encoder --epochs 14 --views 0 --lrs 1e-3 --ratios 1 $speed
    fi
    iwm report $at
    mkdir -p "$here/evidence/$run/eval"
    cp $at/config.yaml $at/metrics.jsonl "$here/evidence/$run"
    cp $at/eval/*.json "$here/evidence/$run/eval"
done
