"""Training step, images a second: ours against the plain twin, and as I-JEPA against the libraries that have it.

A step is views, masks, teacher, student, predictor, loss, backward, clipping, AdamW, EMA; decoding is not in it.
`objective` iwm: the recipe's own settings (demo, cifar10; with AdamW: what Muon costs, `benchmarks.muon` says) or the
paper's (vit-s, vit-b); `objective` ijepa: the same sizes without action and with token-normalised targets, all that the
other libraries can be set to.
"""

from typing import Any

from benchmarks import contenders
from benchmarks.sizes import as_ijepa, settings_of
from benchmarks.timing import Options, compare, show
from iwm.runtime import devices


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, and sentences about who could not take part."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    with devices.kept_memory():  # for all of them alike: a step is run as `iwm pretrain` runs it
        for size in options.sizes:
            for precision in options.precisions:
                settings = settings_of(size, precision, options)
                pair = [contenders.ours(settings), contenders.twin(settings)]
                what = {"size": size, "batch": settings.optim.batch_size, "precision": precision}
                rows += compare(pair, options, **what, objective="iwm")
                plain, field = as_ijepa(settings), []
                for name, build in contenders.LIBRARIES.items():
                    try:
                        field.append(build(plain))
                    except ImportError as error:
                        missing[name] = f"{name} did not take part: {error}. See benchmarks/__init__.py."
                if field:
                    rows += compare([contenders.ours(plain), *field], options, **what, objective="ijepa")
    show("training step", rows)
    return rows, list(missing.values())
