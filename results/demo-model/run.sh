#!/bin/sh
# Reproduces the model in the package and this folder's numbers.
set -eu
iwm pretrain --config results/demo-model/config.yaml --out runs/demo-model
python tools/build_demo_model.py runs/demo-model --trained-on 'one thread of an AMD EPYC with 2 cores, beside other work'
