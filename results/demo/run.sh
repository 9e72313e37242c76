#!/bin/sh
# Reproduces this folder's numbers: the demo on the embedded photos, as docs/demo.md describes it.
set -eu
iwm demo
