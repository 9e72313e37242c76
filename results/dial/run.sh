#!/bin/sh
# The dial from equivariant to invariant (objective.invariance_weight) on EuroSAT, 4 passes of its 5,000 training
# images: block 2 of 4 is predicted, the last block made invariant by the weight in the arm's name; beside it the recipe
# as it is.
#   sh results/dial/run.sh path/to/eurosat.zip
# One core, four to six minutes a run, five a seed; stopped and started again, it goes on where it was.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
speed="--speed.threads 1"
. "$here/../once.sh"
for seed in ${SEEDS:-0 1 2}; do
    for arm in ${ARMS:-recipe w0 w0.1 w1 w10}; do
        at=runs/dial/$arm
        test $seed = 0 || at=$at-seed$seed
        case $arm in
        recipe) change= ;;
        *) change="--encoder.layer 2 --objective.target-layers 2 --objective.invariance-weight ${arm#w}" ;;
        esac
        iwm pretrain eurosat --data.source "$eurosat" --out $at --optim.epochs 4 --seed $seed --log-every 156 --probe-every 4 \
            $change $speed
        once world-32x256-seed0-eurosat.json iwm world $at --data "$eurosat" --images 32 $speed
        once probe-linear-eurosat.json iwm probe $at --data "$eurosat" --no-baselines $speed
        once probe-linear-layer2-eurosat.json iwm probe $at --data "$eurosat" --layer 2 --no-baselines $speed
        once probe-linear-layers4-eurosat.json iwm probe $at --data "$eurosat" --layers all --no-baselines $speed
        mkdir -p "$here/${at#runs/dial/}"
        cp $at/config.yaml $at/eval/*.json "$here/${at#runs/dial/}"
        tail -n 1 $at/metrics.jsonl >"$here/${at#runs/dial/}/last-line.json"
    done
done
