#!/usr/bin/env bash
# Reference numbers: what the commands write on this machine, to be bit-identical before and after a change of the code
# that should change nothing.
#
#   benchmarks/reference.sh OUT [SOURCE]                    once with the code before, once with the code after
#   python benchmarks/compare_reference.py OUT OUT_AFTER    every difference
#
# SOURCE is CIFAR-10 as class folders or a zip of them, by default sample-objects: 6,400 of its training and 600 of its
# validation images are taken. A seeded `demo --quick`, 200 steps of `cifar10`, 20 steps of every other family, every
# evaluation and every text for people, one thread, fp32 (the demo by itself takes what the processor multiplies).
#
# Results hold absolute paths and fingerprints of them, so all is made in the folder REFERENCE_WORK, always the same
# one, and moved to OUT in the end, finished or not. IWM and PYTHON name the programs, by default those of the path.
set -euo pipefail
out=${1:?give the folder that the results go to}
source=${2:-sample-objects}
here=$(cd "$(dirname "$0")" && pwd)
work=${REFERENCE_WORK:-${TMPDIR:-/tmp}/iwm-reference}
IWM=${IWM:-iwm}
PYTHON=${PYTHON:-python}
test ! -e "$out" || { echo "$out is there already; give another folder." >&2 && exit 2; }
test ! -e "$source" || source=$(realpath "$source")
mkdir -p "$(dirname "$out")"
out=$(realpath "$out")
mkdir "$work" || { echo "Another reference is being made in $work; delete it if not." >&2 && exit 2; }
trap 'cd "$here" && mv "$work" "$out"' EXIT
cd "$work"
mkdir printed data runs
# Tables are not cut, and not drawn in colours.
export OMP_NUM_THREADS=1 COLUMNS=200 NO_COLOR=1 PYTHONHASHSEED=0
speed="--speed.threads 1 --speed.precision fp32 --speed.device cpu"
SECONDS=0

say() { # say NAME WORDS...: iwm WORDS..., what it prints and its exit code in printed/NAME.txt
    local name=$1 code=0
    shift
    echo "$(printf '%4d' $SECONDS) s  $name"
    $IWM "$@" >"printed/$name.txt" 2>"printed/$name.err" || code=$?
    echo "exit code $code" >>"printed/$name.txt"
    if [ $code -gt 1 ] || { [ $code = 1 ] && [ "$1" != doctor ]; }; then # 1: the doctor's word for an ill run
        cat "printed/$name.err" >&2
        return 1
    fi
}

# ---- texts for people ------------------------------------------------------------------------------------------------

verbs="demo recipes pretrain sweep world probe finetune efficiency multitask segment predict imagine infer look undo"
verbs="$verbs compare doctor report"
say help --help
for verb in $verbs; do
    say help-$verb $verb --help
done
say recipes recipes

# ---- the demo --------------------------------------------------------------------------------------------------------

say demo demo --quick --out demo
say doctor-demo doctor demo

# ---- data ------------------------------------------------------------------------------------------------------------

# all.npz: 6,400 and 600 images. small.npz: a tenth of the former and 200. two.npz: 320 and 100, whether they are
# bright. masked.npz: 48 and 16, every pixel's class is its largest colour. a.png, b.png: an image and a brighter one of
# it.
"$PYTHON" - "$source" <<'DATA'
import sys

import numpy as np
from PIL import Image

import iwm


def taken(split, count):
    images = iwm.open_images(sys.argv[1], split, size=32)
    order = np.argsort(images.labels, kind="stable")
    rows = np.sort(order[np.linspace(0, len(order) - 1, count).round().astype(int)])
    pictures = (Image.fromarray(images.load(int(row)).permute(1, 2, 0).numpy()).resize((32, 32)) for row in rows)
    return np.stack([np.asarray(picture) for picture in pictures]), images.labels[rows], images.classes


def saved(name, train, val, classes, key="labels"):
    arrays = {"images": train[0], key: train[1], "val_images": val[0], f"val_{key}": val[1]}
    np.savez(f"data/{name}.npz", **arrays, **({"classes": np.array(classes)} if classes else {}))


def part(split, count):
    rows = np.linspace(0, len(split[0]) - 1, count).round().astype(int)
    return split[0][rows], split[1][rows]


(*train, classes), (*val, _) = taken("train", 6400), taken("val", 600)
saved("all", train, val, classes)
saved("small", part(train, 640), part(val, 200), classes)
bright = [(images, (images.mean(axis=(1, 2, 3)) > 120).astype(int)) for images, _ in (part(train, 320), part(val, 100))]
saved("two", *bright, ("dark", "bright"))
masked = [(images, images.argmax(axis=3).astype(np.uint8)) for images, _ in (part(train, 48), part(val, 16))]
saved("masked", *masked, None, "masks")
Image.fromarray(val[0][0]).save("data/a.png")
Image.fromarray((val[0][0] * 1.2).clip(0, 255).astype(np.uint8)).save("data/b.png")
DATA

# ---- pretraining -----------------------------------------------------------------------------------------------------

say pretrain-cifar10 pretrain cifar10 --data.source data/all.npz --out runs/cifar10 --optim.epochs 1 \
    --optim.warmup-epochs 0.25 --log-every 50 --save-every 100 --probe-every 2 $speed
families="ijepa-cifar10 mae-cifar10 pixel-world-cifar10 moco-cifar10 byol-cifar10 cifar10-inv"
short="--optim.epochs 1 --optim.warmup-epochs 0.25 --optim.batch-size 32 --optim.lr-batch 32 --log-every 10"
for recipe in $families; do
    say pretrain-$recipe pretrain $recipe --data.source data/small.npz --out runs/$recipe $short --save-every 10 $speed
done
for recipe in cifar10 $families; do
    say doctor-$recipe doctor runs/$recipe
done

# ---- evaluations -----------------------------------------------------------------------------------------------------

run=runs/cifar10
small="--data data/small.npz"
tune="--epochs 2 --lrs 1e-3 --ratios 1 --views 2 $speed"
say world world $run $small --images 8 --bank 32 $speed
say world-twin world runs/cifar10-inv $small --images 4 --bank 16 --seed 1 --frozen-random-twin $speed
for recipe in ijepa-cifar10 mae-cifar10 pixel-world-cifar10; do
    say world-$recipe world runs/$recipe $small --images 4 --bank 16 $speed
done
for kind in knn linear attentive; do
    say probe-$kind probe $run $small --kind $kind $speed
done
for recipe in moco-cifar10 byol-cifar10; do
    say probe-$recipe probe runs/$recipe $small --kind linear --no-baselines --student $speed
done
say probe-beside probe $run $small --kind knn --layer 2 --pooling max --encoder runs/ijepa-cifar10 $speed
say finetune-head finetune $run $small --train head $tune
say finetune-pretrained finetune $run $small --train predictor --no-baselines $tune
say finetune-random finetune $run $small --train predictor --predictor random --no-baselines $tune
say finetune-grid finetune $run --data data/two.npz --train predictor --depth 1 --queries one --action random \
    --no-baselines --seed 1 --epochs 2 --lrs 3e-4 1e-3 --ratios 0.1 1 --views 2 $speed
for train in encoder both last-1; do
    say finetune-$train finetune $run $small --train $train --no-baselines $tune
done
say finetune-augmented finetune $run --data data/two.npz --train head --views 0 --augment timm --mixup 0.8 --cutmix 1 \
    --smoothing 0.1 --ema 0.99 --drop-path 0.1 --no-baselines --epochs 1 --lrs 1e-3 --ratios 1 $speed
say efficiency efficiency $run --data data/two.npz --depths 1 2 --blocks 1 --epochs 1 --lrs 1e-3 --ratios 1 --views 1 $speed
say multitask multitask $run --task kind=data/small.npz --task light=data/two.npz $tune
pixels="--data data/masked.npz --epochs 1 --lrs 1e-3 --ratios 1 $speed"
say segment-head segment $run --train head --head linear $pixels
say segment-upernet segment $run --train head --no-baselines $pixels
say segment-predictor segment $run --train predictor --head linear --no-baselines $pixels
say segment-encoder segment $run --train encoder --head linear --no-baselines $pixels
say segment-both segment $run --train both --head linear --no-baselines --views 1 $pixels
say predict predict $run/eval/finetune-predictor-pretrained-small data/small.npz --out predictions.csv $speed
say predict-task predict $run/eval/multitask-pretrained-kind+light data/a.png --task light --out one.csv $speed
say imagine imagine $run data/a.png --action brightness=0.2,hue=-0.05 --bank 32 $speed
say imagine-sweep imagine $run data/a.png --sweep hue --bank 32 --candidates data/two.npz $speed
say infer infer $run data/a.png data/b.png $speed
say infer-source infer $run $small --images 8 --train-images 100 $speed
say look look $run $small --images 60 --views 1 4 --shown 2 $speed
say undo undo $run $small --images 20 --train-images 100 --guesses 2 $speed

# ---- many runs -------------------------------------------------------------------------------------------------------

sweep="sweep cifar10 --data.source data/small.npz --out sweep --conditionings none,adaln --levels destructive"
sweep="$sweep --predictors 1x64 --images 320 --eval-images 320 100 --world-images 4 --bank 8 --attentive-epochs 1"
sweep="$sweep --finetune-epochs 1 --finetune-views 1 --finetune-lrs 1e-3 --finetune-ratios 1 $short $speed"
say sweep-list $sweep --list
say sweep $sweep
say compare compare $run runs/cifar10-inv runs/ijepa-cifar10 runs/mae-cifar10 demo
say report report $run
say report-byol report runs/byol-cifar10

# Going on from a checkpoint, last, as it changes the run.
say resume pretrain --config runs/cifar10-inv/config.yaml --optim.epochs 2
echo "$SECONDS s, in $out"
