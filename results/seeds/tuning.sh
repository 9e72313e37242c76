#!/bin/sh
# Head, predictor, encoder or both: what finetuning each brings, over three pretraining seeds of EuroSAT's recipe; and
# the predictors of the I-JEPA-style recipe and of ijepa-world in the same way. All on fresh crops, for 14 epochs, over
# one grid of learning rates, the head with one more; a network from scratch is trained like the encoder, without layer
# decay. "Both" has the predictor's 14 epochs before its own, so predictor and encoder are finetuned for 28, too.
#   sh results/seeds/tuning.sh path/to/eurosat.zip
# After run.sh, whose pretrainings it takes. One core, two hours a seed; SEEDS, RECIPES and PARTS choose some.
set -eu
eurosat=${1:?give eurosat.zip}
here=$(dirname "$0")
how="--search-epochs 2 --views 0 --ratios 1 --speed.threads 1"
for seed in ${SEEDS:-0 1 2}; do
    for recipe in ${RECIPES:-eurosat ijepa-style-eurosat ijepa-world-eurosat}; do
        case $recipe in
        eurosat) name=seed$seed parts="head predictor encoder both predictor-long encoder-long" ;;
        *) name=seed$seed-${recipe%-eurosat} parts=predictor ;;
        esac
        at=runs/tuning/$name
        suffix=eurosat
        test $seed = 0 || suffix=seed$seed-eurosat
        mkdir -p $at
        cp -r runs/seeds/$recipe-seed$seed/config.yaml runs/seeds/$recipe-seed$seed/model $at
        for part in ${PARTS:-$parts}; do
            train=${part%-long} out=$at epochs=14 proof=top1 more=--no-baselines
            case $part in
            head) more="3e-2 $more" ;;
            both) more="--start $at/eval/finetune-predictor-pretrained-$suffix $more" ;;
            encoder) proof=random_encoder_top1 more= ;;
            *-long) out=$at-long epochs=28 more="--out $at-long $more" ;;
            esac
            grep -qs "\"$proof\"" $out/eval/finetune-$train-*.json ||
                iwm finetune $at --data "$eurosat" --seed $seed --train $train --epochs $epochs \
                    --lrs 3e-4 1e-3 3e-3 1e-2 $more $how
            mkdir -p "$here/tuning/${out##*/}"
            cp $out/eval/*.json "$here/tuning/${out##*/}"
        done
    done
done
