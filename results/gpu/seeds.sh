#!/bin/sh
# Three pretraining seeds of four arms on two data sets, and four long runs, on one GPU, many processes at once: the
# recipe, I-JEPA-style, the same a third longer, and I-JEPA-style's encoder with a world model beside it (recipe
# ijepa-world-SIZE).
#   sh results/gpu/seeds.sh path/to/eurosat.zip path/to/cifar10.zip
# On an H200 with 16 cores these commands took 21 minutes, 18 processes at once (JOBS), ijepa-world-SIZE given there as
# the changes that it now stands for. Stopped and started again, it goes on where it was.
set -eu
eurosat=${1:?give eurosat.zip}
cifar10=${2:?give cifar10.zip}
here=$(dirname "$0")
if [ "$eurosat" = --arm ]; then # --arm KIND SET NAME RECIPE STEPS SEED CHANGES...
    shift
    kind=$1 set=$2 name=$3 recipe=$4 steps=$5 seed=$6
    shift 6
    . "$here/../once.sh"
    speed="--speed.threads 1 --speed.device cuda --speed.compile False"
    at=runs/$kind/$name-seed$seed
    case $set in
    cifar10) data=$CIFAR10 labels="runs/parts/cifar10-5000.npz --val $CIFAR10" named=cifar10-5000 ;;
    *) data=$EUROSAT labels=$EUROSAT named=eurosat ;;
    esac
    iwm pretrain $recipe --data.source "$data" --out $at --seed $seed --optim.steps $steps --log-every $((steps / 4 + 1)) \
        --probe-every 1 --save-every 2000 "$@" $speed
    once probe-linear-layers4-$set.json iwm probe $at --data "$data" --layers all --no-baselines $speed
    case $recipe in ijepa-style-*) ;; *) once world-$set.json iwm world $at --data "$data" $speed ;; esac
    case $kind in
    long) tune="--epochs 20 --search-epochs 3 --views 8" predictors=pretrained ;;
    *) tune="--epochs 4 --search-epochs 2 --views 2" predictors="pretrained random" ;;
    esac
    how=
    [ $seed = 0 ] || how=-seed$seed
    tune="$tune --train predictor --no-baselines --seed $seed --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 $speed"
    for predictor in $predictors; do
        once finetune-predictor-$predictor$how-$named.json iwm finetune $at --data $labels --predictor $predictor $tune
    done
    case $kind-$recipe in
    short-ijepa-world-*)
        once finetune-predictor-pretrained-random-action$how-$named.json \
            iwm finetune $at --data $labels --action random $tune
        ;;
    esac
    test $set = cifar10 || once probe-attentive-$set.json iwm probe $at --data "$data" --kind attentive --no-baselines $speed
    mkdir -p "$here/$kind/$name-seed$seed/eval"
    cp $at/config.yaml $at/metrics.jsonl "$here/$kind/$name-seed$seed"
    cp $at/eval/*.json "$here/$kind/$name-seed$seed/eval"
    exit
fi
export EUROSAT="$eurosat" CIFAR10="$cifar10"
mkdir -p runs/parts
test -e runs/parts/cifar10-5000.npz || python "$here/../small-data/part.py" "$cifar10" runs/parts/cifar10-5000.npz 5000 0
{
    for size in "cifar10 13000" "eurosat 11000"; do
        set=${size% *} steps=${size#* }
        for recipe in ijepa-world-$set ijepa-style-$set; do
            echo long $set $recipe $recipe $steps 0 --encoder.width 256 --encoder.heads 8
        done
    done
    for seed in 0 1 2; do
        for size in "cifar10 4000 5333" "eurosat 2184 2912"; do
            # shellcheck disable=SC2086
            set -- $size
            echo short $1 ijepa-world-$1 ijepa-world-$1 $3 $seed
            echo short $1 ijepa-style-$1-long ijepa-style-$1 $3 $seed
            echo short $1 ijepa-style-$1 ijepa-style-$1 $2 $seed
            echo short $1 $1 $1 $2 $seed
        done
    done
} | xargs -P "${JOBS:-18}" -L 1 sh "$0" --arm
