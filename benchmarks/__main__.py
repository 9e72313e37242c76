"""`python -m benchmarks [SUBJECT ...] [--quick]`."""

import argparse
from pathlib import Path

from benchmarks import host, masks, muon, neighbour, peak, ranks, step, variants, views
from benchmarks.sizes import NAMES
from benchmarks.timing import Options, write
from iwm.config import Speed
from iwm.runtime import devices
from iwm.runtime.console import console

SUBJECTS = {
    module.__name__.split(".")[-1]: module.measure
    for module in (step, views, masks, peak, muon, host, variants, neighbour, ranks)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast is it, against what?")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few short repeats: minutes on one core")
    parser.add_argument("--out", type=Path, default=Options.out, help="folder of the JSON files")
    parser.add_argument("--sizes", nargs="+", choices=NAMES, default=Options.sizes)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=Options.precisions)
    parser.add_argument("--repeats", type=int, help="turns of every contender")
    parser.add_argument("--compile", action="store_true", help="ours with --speed.compile")
    parser.add_argument("--against", type=Path, help="host: another checkout to measure in turns")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args()
    unknown = [name for name in given.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"there is no subject '{unknown[0]}'; known are {', '.join(SUBJECTS)}")
    options = Options(
        quick=given.quick,
        out=given.out,
        sizes=tuple(given.sizes),
        precisions=tuple(given.precisions),
        repeats=given.repeats or (2 if given.quick else Options.repeats),
        seconds=0.2 if given.quick else Options.seconds,
        compile=given.compile,
        against=given.against,
        device=devices.device_of(Speed(device=given.device)),
    )
    with devices.threads(Speed()) as threads:
        console.print(f"{devices.processor_name()}, {threads} threads, device {options.device}")
        for name in given.subjects or SUBJECTS:
            console.rule(name)
            rows, missing = SUBJECTS[name](options)
            write(name, rows, missing, options)


if __name__ == "__main__":
    main()
