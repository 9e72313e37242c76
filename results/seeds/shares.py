"""The photometric share of pretrainings whose result of `iwm world` holds that of their own changes.

    python results/seeds/shares.py path/to/cifar10.zip runs/seeds/*cifar10*-seed? runs/claims-?/*-?x*
    python results/seeds/shares.py path/to/eurosat.zip runs/seeds/*eurosat*-seed?

Until 2026-11-27 the share was measured on the changes that a run itself was shown; since then for every run on those
of the level `destructive`, with all views jittered. For `cifar10` and `eurosat`, which are shown these, the two are one
number. As `iwm world` measures it, seed 0; written into shares.json beside this file. Seconds of a core a pretraining.
"""

import json
import sys
from pathlib import Path

import iwm
from iwm.data.shares import load_draw
from iwm.data.sources import open_images
from iwm.evaluation.world.calibration import CLEAN
from iwm.model import target_measures

data, *runs = sys.argv[1:]
path = Path(__file__).parent / "shares.json"
shares = json.loads(path.read_text()) if path.exists() else {}
train = open_images(data, "train")
for run in runs:
    model = iwm.load(run)
    images, _ = load_draw(train, CLEAN, model.settings.data.image_size, 0)
    name = "/".join(Path(run).parts[-2:])
    shares[name] = round(float(target_measures.of_images(model, images, 0)["photometric_share"]), 4)
    print(name, shares[name])
    path.write_text(json.dumps(dict(sorted(shares.items())), indent=1) + "\n")
