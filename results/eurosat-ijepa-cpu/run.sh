#!/bin/sh
# Reproduces this folder's numbers, with those of eurosat-cpu: sh results/eurosat-ijepa-cpu/run.sh path/to/eurosat.zip
exec sh "$(dirname "$0")/../eurosat-cpu/run.sh" "$@"
