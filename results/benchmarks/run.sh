#!/bin/sh
# Reproduces this folder's numbers on a CPU, in an environment that also has benchmarks/requirements.txt. About 13
# minutes on two cores that must have nothing else to do.
python -m benchmarks step views masks peak --repeats 3 --out results/benchmarks
python -m benchmarks muon --sizes demo cifar10 --repeats 3 --out results/benchmarks
python -m benchmarks ranks --repeats 6 --out results/benchmarks
