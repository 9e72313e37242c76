"""Build the model in the package (src/iwm/model/assets/demo) from a finished RUN.

Usage: python tools/build_demo_model.py RUN [--trained-on "one NVIDIA H200, 6 minutes"] [--data sample] [--head linear]

RUN needs config.yaml, metrics.jsonl and model/. The tool writes EMA encoder and predictor in bf16 (target statistics in
fp32), fits the pixel decoder to these rounded weights, writes it in bf16 too, measures what will be shipped beside all
controls, and writes the card. What the model was made by (config.yaml, metrics.jsonl, run.sh, results) goes to
results/demo-model, and docs/results.md is written anew. The new files take the place of the old ones only when
everything has worked and they have at most 5 MB.
"""

import argparse
import json
import runpy
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined

from iwm import config, verbs
from iwm.data.shares import load_draw
from iwm.data.sources import open_splits
from iwm.evaluation.world import decoder
from iwm.model import pixel_decoder, weights
from iwm.run_folder import SHIPPED_FOLDER, RunFolder, identity, load_model, plain_name
from iwm.runtime import devices
from iwm.runtime.errors import UserError

RESULTS = Path(__file__).parent.parent / "results" / "demo-model"
LIMIT = 5_000_000
"""Bytes of all shipped files together."""
CARD, TEMPLATE = "card.md", Path(__file__).parent / "demo_card.md.jinja"
PLACE = "runs/demo-model"
"""The run, as the card and the settings name it."""
FITTED, CHANGES = 800, 4
"""Images, and changes of each, that the decoder is fitted to."""
IMAGES, BANK = 119, 64
"""Held-out images, and versions of each, that it is measured on."""


def build(run: Path, folder: Path, evaluation: Path, data: str, head: str, trained_on: str, seed: int) -> None:
    """Write the shipped files of a RUN into `folder`, and the results of what was written into `evaluation`."""
    model, source = load_model(run), RunFolder(run)
    model.require_predictor()
    steps = int(source.metric_lines()[-1]["step"])
    model.settings = replace(model.settings, run=replace(model.settings.run, out=PLACE))
    weights.export(model, folder, rounded=True, step=steps)
    shared: dict[str, Any] = {"run": str(folder), "out": str(evaluation), "data": data, "seed": seed}
    verbs.call("decoder", images=FITTED, changes=CHANGES, head=head, test_images=IMAGES, **shared)
    place = folder / weights.DECODER
    fitted, mark = pixel_decoder.read(place)
    fitted.write(place, mark, torch.bfloat16)
    pictures = psnr_of(folder, data, seed)  # of the rounded decoder: what is shipped
    result = next((evaluation / "eval").glob("decoder-*.json"))
    result.write_text(json.dumps(json.loads(result.read_text()) | pictures, indent=1) + "\n")
    world = verbs.call("world", **shared)
    instance = verbs.call("probe", kind="instance", **shared)
    numbers = {"pictures": pictures, "world": world, "instance": instance, "steps": steps, "head": fitted.head}
    (folder / CARD).write_text(card(source, data=data, seed=seed, trained_on=trained_on, **numbers))


def psnr_of(folder: Path, data: str, seed: int) -> dict[str, float]:
    """PSNR of the shipped, rounded decoder with its controls, see `iwm decoder`."""
    model = load_model(folder)
    _, held, _ = open_splits(data, size=model.settings.data.image_size)
    exam, _ = load_draw(held, IMAGES, model.settings.data.image_size, seed)
    return decoder.measure(model, exam, BANK, seed)


def card(run: RunFolder, **content: Any) -> str:
    """The model card."""
    machine = devices.describe()
    gpu = "" if machine.get("gpu") in (None, "none") else f", {machine['gpu']}"
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        s=run.settings(),
        place=PLACE,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=f"{machine.get('processor', '?')}, {machine.get('cores', '?')} cores{gpu}",
        **content,
    )


SCRIPT = f"""#!/bin/sh
# Reproduces the model in the package and this folder's numbers.
set -eu
iwm pretrain --config results/demo-model/config.yaml --out {PLACE}
python tools/build_demo_model.py {PLACE}
"""


def record(run: RunFolder, results: RunFolder, data: str, names: dict[Path, str]) -> None:
    """Settings and metrics beside the results, all of them without this machine's paths."""
    settings = run.settings()
    config.save(replace(settings, run=replace(settings.run, out=PLACE)), results.config)
    shutil.copy(run.metrics, results.metrics)
    (results.path / "run.sh").write_text(SCRIPT)
    shutil.rmtree(results.cache, ignore_errors=True)
    for path in results.eval.iterdir():  # of the pictures, which are large, the strips are enough
        if path.suffix != ".json" and path.stem != f"world-{data}":
            path.unlink()
    for path in results.eval.glob("*.json"):
        text = path.read_text()
        for place, name in names.items():
            text = text.replace(str(place), name)
        path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trained-on", default="not recorded", help="hardware and time of the training, for the card")
    parser.add_argument("--data", default="sample", help="source whose held-out part is measured on")
    parser.add_argument("--head", default="auto", help="of the decoder, see iwm decoder; linear takes 0.25 MB less")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED_FOLDER, help="folder of the shipped files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of what they were made by")
    o = parser.parse_args()
    try:
        replace_model(o)
    except UserError as error:
        sys.exit(str(error))
    if o.results == RESULTS:
        runpy.run_path(str(RESULTS.parent / "tables.py"), run_name="__main__")


def replace_model(o: argparse.Namespace) -> None:
    """Build beside the old files, then take their place."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = Path(temporary) / "demo", Path(temporary) / "results"
        build(o.run, folder, results, o.data, o.head, o.trained_on, o.seed)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        size = sum(path.stat().st_size for path in files)
        if size > LIMIT:
            raise UserError(
                f"The files have {size:,} bytes, more than {LIMIT:,}; take --head linear, or train a smaller model."
            )
        names = {folder: "demo", results: "iwm-eval/demo", o.run: PLACE}
        record(RunFolder(o.run), RunFolder(results), plain_name(o.data), names)
        for path in files:
            path.chmod(0o644)
        for before, now in ((o.out, folder), (o.results, results)):
            shutil.rmtree(before, ignore_errors=True)
            shutil.copytree(now, before)
    print(f"{len(files)} files, {size:,} bytes in {o.out}; weights {identity(str(o.out))[:12]}")
    print(json.dumps({path.name: path.stat().st_size for path in sorted(o.out.iterdir())}))


if __name__ == "__main__":
    main()
