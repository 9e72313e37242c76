#!/bin/sh
# The dial from equivariant to invariant (objective.invariance_weight) on EuroSAT, 4 passes of its 5,000 training images:
# block 2 of 4 is predicted, the last block made invariant; beside it the recipe and its invariant variant, as they are.
#   sh results/dial/run.sh path/to/eurosat.zip
# One core, six minutes a run; stopped and started again, it goes on where it was.
set -eu
eurosat=${1:?give eurosat.zip}
speed="--speed.threads 1"
once() {
    kept=$at/eval/$1
    shift
    test -e "$kept" || "$@"
}
for seed in ${SEEDS:-0}; do
    for arm in ${ARMS:-recipe w1 w10 w0.1 inv}; do
        at=runs/dial/$arm
        test $seed = 0 || at=$at-seed$seed
        recipe=eurosat
        case $arm in
        inv) recipe=eurosat-inv change= ;;
        recipe) change= ;;
        *) change="--encoder.layer 2 --objective.target-layers 2 --objective.invariance-weight ${arm#w}" ;;
        esac
        iwm pretrain $recipe --data.source "$eurosat" --out $at --optim.epochs 4 --seed $seed --log-every 156 --probe-every 4 \
            $change $speed
        once world-32x256-seed0-eurosat.json iwm world $at --data "$eurosat" --images 32 $speed
        once probe-linear-eurosat.json iwm probe $at --data "$eurosat" --no-baselines $speed
        once probe-linear-layer2-eurosat.json iwm probe $at --data "$eurosat" --layer 2 --no-baselines $speed
        once probe-linear-layers4-eurosat.json iwm probe $at --data "$eurosat" --layers all --no-baselines $speed
    done
done
