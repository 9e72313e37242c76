#!/bin/sh
# What a world model on a frozen ViT-S/14 of DINOv2 type is worth beside the encoder alone, on EuroSAT, CIFAR-10 (5,000
# labels) and CamVid, and how well it predicts the package's photos:
#   sh results/on-encoder/run.sh weights.safetensors path/to/eurosat.zip path/to/cifar10.zip path/to/camvid.zip
# One core, two hours. Stopped and started again, it goes on where it was; ONLY="photos eurosat" does some of it.
set -eu
weights=${1:?give the file of weights} eurosat=${2:?give eurosat.zip} cifar10=${3:?give cifar10.zip} camvid=${4:?give camvid.zip}
here=$(dirname "$0")
encoder=timm:vit_small_patch14_dinov2,weights=$weights
speed="--speed.threads 1"
part=runs/parts/cifar10-5000.npz
mkdir -p runs/parts
test -e $part || python "$here/../small-data/part.py" "$cifar10" $part 5000 0

. "$here/../once.sh"

finetunings() { # finetunings DATA WORDS...: the predictor, pretrained and random, three seeds each
    data=$1
    shift
    for seed in 0 1 2; do
        for predictor in pretrained random; do
            how=$predictor
            test $seed = 0 || how=$how-seed$seed
            once finetune-predictor-$how-$data.json iwm finetune $at --train predictor --predictor $predictor --seed $seed \
                --epochs 5 --views 2 --lrs 1e-3 --ratios 1 --no-baselines $speed "$@"
        done
    done
}

for part_of_it in ${ONLY:-photos eurosat cifar10 camvid undo multitask}; do
    case $part_of_it in
    photos) # the best that was found: a lower block, a predictor wider than the encoder, more views
        at=runs/on-encoder/photos
        iwm pretrain on-encoder --data.source sample --out $at --encoder.name $encoder --encoder.layer 2 --encoder.views 24 \
            --predictor.width 512 --optim.epochs 80 $speed
        once world-sample.json iwm world $at --data sample $speed
        ;;
    eurosat)
        at=runs/on-encoder/eurosat
        iwm pretrain on-encoder --data.source "$eurosat" --out $at --encoder.name $encoder --optim.epochs 10 $speed
        once probe-linear-eurosat.json iwm probe $at --data "$eurosat" $speed
        once probe-linear-layer4-eurosat.json iwm probe $at --data "$eurosat" --layer 4 --no-baselines $speed
        once probe-attentive-eurosat.json iwm probe $at --data "$eurosat" --kind attentive --no-baselines $speed
        once world-eurosat.json iwm world $at --data "$eurosat" $speed
        finetunings eurosat --data "$eurosat"
        ;;
    cifar10)
        at=runs/on-encoder/cifar10
        iwm pretrain on-encoder --data.source $part --out $at --encoder.name $encoder --optim.epochs 10 $speed
        once probe-linear-cifar10-5000.json iwm probe $at --data $part --val "$cifar10" $speed
        once probe-linear-layer4-cifar10-5000.json iwm probe $at --data $part --val "$cifar10" --layer 4 --no-baselines $speed
        once world-cifar10.json iwm world $at --data "$cifar10" $speed
        finetunings cifar10-5000 --data $part --val "$cifar10"
        ;;
    camvid)
        at=runs/on-encoder/eurosat
        common="--ignore-index 11 --size 224 --epochs 10 --lrs 1e-3 --ratios 1 --head linear --no-baselines $speed"
        once segment-head-linear-camvid.json iwm segment $at --data "$camvid" --train head $common
        for predictor in pretrained random; do
            once segment-predictor-$predictor-linear-camvid.json iwm segment $at --data "$camvid" --train predictor \
                --predictor $predictor $common
        done
        ;;
    undo)
        at=runs/on-encoder/eurosat
        once undo-eurosat.json iwm undo $at --data "$eurosat" $speed
        ;;
    multitask)
        at=runs/on-encoder/eurosat
        once multitask-pretrained-eurosat+cifar10.json iwm multitask $at --task eurosat="$eurosat" --task cifar10=$part \
            --val cifar10="$cifar10" --epochs 3 --views 1 --lrs 1e-3 --ratios 1 $speed
        ;;
    esac
done
