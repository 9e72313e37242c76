#!/bin/bash
# Two network namespaces as two hosts, joined by one cable: train and measure on both, then cut the cable in training.
# Needs root and the command ip. usage: tools/two_hosts.sh [PYTHON]
set -eu
python=${1:-python} out=$(mktemp -d)
cd "$(dirname "$0")/.."
trap 'ip netns del iwm-a; ip netns del iwm-b; rm -r /etc/netns/iwm-a /etc/netns/iwm-b' EXIT
ip netns add iwm-a
ip netns add iwm-b
ip link add cable netns iwm-a type veth peer name cable netns iwm-b
for host in a:1 b:2; do
    ip -n "iwm-${host%:*}" addr add "10.77.0.${host#*:}/24" dev cable
    ip -n "iwm-${host%:*}" link set cable up
    ip -n "iwm-${host%:*}" link set lo up
done
# As Debian has it: the name of a host leads to its loopback on itself, and to its address elsewhere.
mkdir -p /etc/netns/iwm-a /etc/netns/iwm-b
echo "127.0.1.1 host-a" >/etc/netns/iwm-a/hosts
echo "10.77.0.1 host-a" >/etc/netns/iwm-b/hosts
rank() { # HOST RANK WORDS...: one process on a host
    local host=$1 rank=$2
    shift 2
    ip netns exec "iwm-$host" env PYTHONPATH=src OMP_NUM_THREADS=1 WORLD_SIZE=2 RANK="$rank" LOCAL_WORLD_SIZE=1 \
        MASTER_ADDR=host-a MASTER_PORT=29511 "$python" -m iwm.cli "$@" >"$out/rank-$rank.txt" 2>&1
}
both() {
    echo "== iwm $*"
    rank a 0 "$@" & local first=$!
    rank b 1 "$@" & local second=$! codes=""
    wait $first && codes=0 || codes=$?
    wait $second && codes="$codes 0" || codes="$codes $?"
    tail -n 2 "$out/rank-0.txt"
    grep -h "All ranks stop" "$out"/rank-*.txt || true
    echo "exit codes: $codes, seconds since the start: $SECONDS"
}
quick="--speed.device cpu --speed.workers 0"
both pretrain demo --data.source sample --out "$out/run" --optim.epochs 1 $quick
both world "$out/run" --data sample --images 8 --bank 16 $quick
cut() { # once training runs
    rm "$out/rank-0.txt"
    until grep -qs "steps of" "$out/rank-0.txt"; do sleep 1; done
    sleep 5
    ip -n iwm-a link set cable down
    echo "the cable is cut, seconds since the start: $SECONDS"
}
cut &
both pretrain demo --data.source sample --out "$out/cut" --optim.epochs 99 $quick
