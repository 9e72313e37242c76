#!/usr/bin/env bash
# Makes benchmarks/pack: what benchmarks/gpu.sh needs beside the code on a machine without network, under 50 MB.
#
#   benchmarks/pack.sh DATA.zip [PACKAGE...]
#
# DATA.zip is a CIFAR-10 as `iwm pretrain` reads it. PACKAGE... are what the other machine lacks (by default what a
# common PyTorch image lacks), in the versions of constraints.txt, without their dependencies; benchmarks/gpu.sh names
# what is missing. Settings from outside: PACK, PIP, TARGET_PYTHON (3.12).
set -euo pipefail
cd "$(dirname "$0")/.."

PACK=${PACK:-benchmarks/pack}
PIP=${PIP:-python3 -m pip}
TARGET_PYTHON=${TARGET_PYTHON:-3.12}
LARGEST=$((50 * 1000 * 1000))

if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    echo "Give the CIFAR-10 archive: benchmarks/pack.sh DATA.zip [PACKAGE...]" >&2
    exit 2
fi
data=$1
shift
packages=("$@")
if [ ${#packages[@]} = 0 ]; then
    packages=(tyro docstring_parser typeguard beartype)
fi

mkdir -p "$PACK"
rm -f "$PACK"/*.whl
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    platforms+=(--platform "$platform")
done
# PIP may be several words.
# shellcheck disable=SC2086
$PIP download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$TARGET_PYTHON" \
    "${platforms[@]}" --constraint constraints.txt --dest "$PACK" "${packages[@]}"
cp "$data" "$PACK/cifar10.zip"

size=$(cat "$PACK"/* | wc -c)
if [ "$size" -ge "$LARGEST" ]; then
    echo "$PACK has $size bytes, more than $LARGEST; pack fewer packages." >&2
    exit 1
fi
echo "$PACK: $size bytes. Take it along with the code, then run benchmarks/gpu.sh there."
