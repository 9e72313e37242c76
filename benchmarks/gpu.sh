#!/usr/bin/env bash
# All that needs a GPU, on a CUDA machine without network that has its own torch (2.11 or newer):
#
#   benchmarks/gpu.sh          every piece that is not done yet, one after another
#   benchmarks/gpu.sh PIECE    one of: variants caches tests vit-s vit-s-compiled vit-b vit-b-compiled cifar10 world
#                              linear finetune variants-b
#   benchmarks/gpu.sh --quick  what needs no GPU, at toy size on the CPU: whether the script runs, not how fast
#
# `variants` comes first: in one call it says which form of a step is the quickest, and `caches` whether pictures on the
# device pay.
#
# No piece takes longer than 10 minutes. A stopped one is simply started again: finished pieces are skipped, the
# CIFAR-10 run goes on from its checkpoint (call again until it says it is complete). Wheels this machine lacks and the
# data come from benchmarks/pack.sh and lie in PACK. Everything is kept in STATE; where OUT is given, the files to read
# (JSON, metrics, logs of failed pieces) are copied there too. Settings from outside: PACK, STATE, OUT, PYTHON, EPOCHS,
# BATCH, LIMIT (seconds a piece).
set -euo pipefail
cd "$(dirname "$0")/.."

PACK=${PACK:-benchmarks/pack}
STATE=${STATE:-build/gpu}
mkdir -p "$STATE"
STATE=$(cd "$STATE" && pwd)
PYTHON=${PYTHON:-python3}
EPOCHS=${EPOCHS:-100}
BATCH=${BATCH:-256}
LIMIT=${LIMIT:-570}
PIECES=(variants caches tests vit-s vit-s-compiled vit-b vit-b-compiled cifar10 world linear finetune variants-b)
if [ "${1:-}" = --quick ]; then
    shift
    export QUICK=1
    STATE=$STATE/quick
    mkdir -p "$STATE"
fi
[ -z "${QUICK:-}" ] || PIECES=(variants caches vit-s)
export STATE
RUN=$STATE/cifar10-vits
VITS=(--encoder.width 384 --encoder.depth 12 --encoder.heads 6 --predictor.width 384 --predictor.depth 6)

piece() {
    case $1 in
    variants) variants vit-s ;;
    variants-b) variants vit-b ;;
    caches) caches ;;
    tests)
        # Named one by one, so that a run that is stopped has said which failed. Eight workers with all cores each would
        # keep the tests of several ranks waiting until they take each other for dead.
        export OMP_NUM_THREADS=2
        exec "$PYTHON" -m pytest -v -n 8 -p no:benchmark --tb=short tests/training tests/model tests/actions \
            tests/test_benchmarks.py
        ;;
    vit-s | vit-b) bench "$1" ;;
    vit-s-compiled | vit-b-compiled) bench "${1%-compiled}" --compile ;;
    cifar10)
        # The recipe's settings at ViT-S size; patches of 4, so 64 tokens an image.
        exec "$PYTHON" -m iwm.cli pretrain cifar10 --data.source "$PACK/cifar10.zip" --out "$RUN" \
            "${VITS[@]}" \
            --optim.epochs "$EPOCHS" --optim.batch-size "$BATCH" --optim.lr-batch "$BATCH" --optim.lr 2e-3 \
            --speed.precision bf16 --speed.device cuda
        ;;
    world) measure world ;;
    linear) measure probe --kind linear ;;
    finetune) measure finetune --train predictor --epochs 20 --views 0 --lrs 1e-3 --ratios 1 --no-baselines ;;
    esac
}

variants() { # variants SIZE: eager, compiled, captured; crops given, or made on the device
    local options=(--sizes "$1" --precisions bf16 --device cuda)
    [ -z "${QUICK:-}" ] || options=(--sizes demo --precisions fp32 --device cpu --quick)
    exec "$PYTHON" -m benchmarks variants "${options[@]}" --out "$STATE/$1-variants"
}

caches() { # short runs of CIFAR-10 that differ in where the pictures lie; images_per_second of their last lines
    local options=(cifar10 --data.source "$PACK/cifar10.zip" "${VITS[@]}" --speed.precision bf16 --speed.device cuda
        --speed.compile True --optim.batch-size "$BATCH" --optim.steps 400 --log-every 100)
    local rounds=(1 2) round cache
    if [ -n "${QUICK:-}" ]; then
        options=(demo --data.source sample-objects --speed.device cpu --optim.steps 2 --log-every 2)
        rounds=(1)
    fi
    for round in "${rounds[@]}"; do
        for cache in memory device; do
            "$PYTHON" -m iwm.cli pretrain "${options[@]}" --speed.cache "$cache" --out "$STATE/caches/$cache-$round"
        done
    done
    grep -o '"images_per_second": [0-9.]*' "$STATE"/caches/*/metrics.jsonl | tee "$STATE/caches/rates.txt"
}

bench() {
    if [ -n "${QUICK:-}" ]; then
        exec "$PYTHON" -m benchmarks peak --quick --sizes demo --precisions fp32 --device cpu --out "$STATE/$1" "${@:2}"
    fi
    exec "$PYTHON" -m benchmarks peak --sizes "$1" --precisions bf16 --device cuda --out "$STATE/$1${2:+-compiled}" "${@:2}"
}

measure() { # measure VERB OPTIONS...: of the CIFAR-10 run, on its test images
    exec "$PYTHON" -m iwm.cli "$1" "$RUN" --data "$PACK/cifar10.zip" --speed.device cuda "${@:2}"
}

# Started by `limited` below. `piece` replaces this shell by the command itself, so that it is the command that
# `timeout` stops and waits for: a shell would die at once and leave it saving.
if [ "${1:-}" = --inside ]; then
    piece "$2"
    exit
fi
if [ $# -gt 0 ] && [[ " ${PIECES[*]} " != *" $1 "* ]]; then
    echo "There is no piece '$1'; known are: ${PIECES[*]}" >&2
    exit 2
fi

limited() {
    local status=0
    # SIGTERM lets a training run save; a minute later it is killed.
    timeout --signal=TERM --kill-after=60 "$LIMIT" bash benchmarks/gpu.sh --inside "$1" 2>&1 | tee "$STATE/$1.log" || status=$?
    # 124, 137: stopped at the limit, 75, 130: by hand; anything else is an error that another call would only repeat.
    if [ "$1" = cifar10 ] && [[ " 75 124 130 137 " == *" $status "* ]] && compgen -G "$RUN/checkpoints/step-*" >/dev/null; then
        echo "cifar10: saved, not complete; call benchmarks/gpu.sh cifar10 again."
        return 3
    fi
    if [ "$status" != 0 ]; then
        echo "$1: failed with exit code $status (124: longer than $LIMIT s)." >&2
        return 1
    fi
    rm "$STATE/$1.log"
    touch "$STATE/$1.done"
}

export PYTHONPATH=$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$PACK/*.whl" >/dev/null; then
    if [ ! -d "$STATE/site" ]; then # whole or absent: an installation that was stopped is begun anew
        rm -rf "$STATE/site.part"
        "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$STATE/site.part" "$PACK"/*.whl
        mv "$STATE/site.part" "$STATE/site"
    fi
    export PYTHONPATH=$PYTHONPATH:$STATE/site
fi
"$PYTHON" - <<'CHECK'
import importlib.util
import os
import sys

import torch

version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
if version < (2, 11):
    sys.exit(f"torch {torch.__version__} is too old; 2.11 or newer is needed.")
needed = "torchvision timm numpy PIL safetensors huggingface_hub tyro rich matplotlib yaml jaxtyping pytest beartype hypothesis"
lacking = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if lacking:
    sys.exit(f"Missing here: {', '.join(lacking)}; add them to the pack: benchmarks/pack.sh DATA.zip PACKAGE...")
if os.environ.get("QUICK"):
    print(f"torch {torch.__version__}, on the CPU at toy size: no number of this says anything about a GPU.")
    sys.exit()
if not torch.cuda.is_available():
    sys.exit("PyTorch sees no CUDA device here; look at nvidia-smi and CUDA_VISIBLE_DEVICES. Nothing was run.")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
CHECK

chosen=("${PIECES[@]}")
if [ $# -gt 0 ]; then
    chosen=("$1")
fi
left=()
for name in "${chosen[@]}"; do
    if [ -f "$STATE/$name.done" ]; then
        echo "$name: done already."
        continue
    fi
    echo "== $name"
    limited "$name" || left+=("$name")
    if [ -n "${OUT:-}" ]; then
        mkdir -p "$OUT"
        for file in "$STATE"/*.log "$STATE"/vit-*/*.json "$STATE"/caches/rates.txt "$RUN"/metrics.jsonl "$RUN"/eval/*.json; do
            [ ! -f "$file" ] || cp "$file" "$OUT/$(basename "$(dirname "$file")")-$(basename "$file")"
        done
    fi
done
echo "Results lie in $STATE."
if [ ${#left[@]} -gt 0 ]; then
    echo "Not done: ${left[*]}" >&2
    exit 1
fi
