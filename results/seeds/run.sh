#!/bin/sh
# What a pretrained predictor is worth beside a random one, over pretraining seeds: the equivariant, the invariant and
# the I-JEPA-style recipe, each seed pretrained and finetuned anew. EuroSAT: 14 passes of its 5,000 training images;
# CIFAR-10: 4,000 steps (2.6 passes of 50,000), finetuned with 5,000 labels.
#   sh results/seeds/run.sh path/to/eurosat.zip path/to/cifar10.zip
# A recipe with -held behind it learns changes by its predictor alone, the encoder from unchanged crops (cifar10-held);
# -whole shows whole sources in half of the steps instead of a quarter (cifar10-whole);
# -deep has a predictor of four blocks instead of two, and as many steps as take the recipe's time (frontier.py's pace);
# -deep-long the same and as many steps as the recipe;
# -clean leaves one of the two views unchanged; -ema has a teacher's EMA from .98 (instead of .99); -half has MLPs half as
# wide in the encoder, and as many steps as take the recipe's time. These three go together: eurosat-clean-ema;
# ijepa-world-cifar10 and -eurosat are a third longer, so that as many steps as I-JEPA-style's teach their encoders;
# ijepa-world-all-cifar10 and -eurosat are these, asked for visible positions too.
# One core, 15 to 30 minutes a run; stopped and started again, it goes on where it was. SEEDS, RECIPES and PREDICTORS
# choose some.
set -eu
eurosat=${1:?give eurosat.zip}
cifar10=${2:?give cifar10.zip}
here=$(dirname "$0")
speed="--speed.threads 1"
part=runs/parts/cifar10-5000.npz
mkdir -p runs/parts
test -e $part || python "$here/../small-data/part.py" "$cifar10" $part 5000 0
. "$here/../once.sh"
for seed in ${SEEDS:-0 1 2}; do
    for recipe in ${RECIPES:-eurosat ijepa-style-eurosat eurosat-inv cifar10 ijepa-style-cifar10 cifar10-inv}; do
        at=runs/seeds/$recipe-seed$seed change= base=$recipe
        case $recipe in
        *-held) base=${recipe%-held} change="--actions.clean both --objective.whole-gradient 0" ;;
        *-deep | *-deep-long) base=${recipe%%-deep*} change="--predictor.depth 4" ;;
        *-whole) base=${recipe%-whole} change="--masks.whole 0.5" ;;
        ijepa-world-all-*) base=ijepa-world-${recipe##*-} change="--masks.predict all --masks.queries 0.375" ;;
        esac
        case $recipe in *-clean*) base=${base%%-clean*} change="$change --actions.clean either" ;; esac
        case $recipe in *-ema*) base=${base%%-ema*} change="$change --optim.ema 0.98" ;; esac
        case $recipe in *-half*) base=${base%%-half*} change="$change --encoder.mlp-ratio 2" ;; esac
        case $recipe in
        *cifar10*)
            set=cifar10 data=$cifar10 labels="$part --val $cifar10" named=cifar10-5000
            length="--optim.steps 4000 --probe-every 1"
            ;;
        *) set=eurosat data=$eurosat labels=$eurosat named=eurosat length="--log-every 546 --probe-every 4" ;;
        esac
        case $recipe in
        cifar10-deep) length="--optim.steps 2716 --probe-every 1" ;;
        eurosat*-half) length="--optim.steps 2504 --log-every 546 --probe-every 4" ;;
        eurosat-deep) length="--optim.steps 1479 --log-every 546 --probe-every 4" ;;
        ijepa-world*-cifar10*) length="--optim.steps 5333 --log-every 400 --probe-every 1" ;;
        ijepa-world*-eurosat*) length="--optim.steps 2912 --log-every 546 --probe-every 1" ;;
        esac
        iwm pretrain $base --data.source "$data" --out $at --seed $seed $length $change $speed
        case $recipe in ijepa-style-*) ;; *) once world-$set.json iwm world $at --data "$data" $speed ;; esac
        once probe-linear-layers4-$set.json iwm probe $at --data "$data" --layers all --no-baselines $speed
        test $set = cifar10 || once probe-attentive-$set.json iwm probe $at --data "$data" --kind attentive --no-baselines $speed
        for predictor in ${PREDICTORS:-pretrained random}; do
            how=$predictor
            test $seed = 0 || how=$how-seed$seed
            once finetune-predictor-$how-$named.json iwm finetune $at --data $labels --train predictor --no-baselines \
                --predictor $predictor --seed $seed --epochs 4 --search-epochs 2 --views 2 --lrs 3e-4 1e-3 3e-3 1e-2 --ratios 1 $speed
        done
        mkdir -p "$here/$recipe-seed$seed/eval"
        cp $at/config.yaml $at/metrics.jsonl "$here/$recipe-seed$seed"
        cp $at/eval/*.json "$here/$recipe-seed$seed/eval"
    done
done
