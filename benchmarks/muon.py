"""Muon, updates a second of all the matrices it moves: ours against `torch.optim.Muon`, and against the fused AdamW on
the same matrices, which says what it costs.

PyTorch's always multiplies in bfloat16; ours in the precision of the run, which is what counts where the processor has
no products of bfloat16. The learning rate and the weight decay of all three are 0, gradients are drawn once.
"""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.sizes import settings_of
from benchmarks.timing import Contender, Options, compare, show
from iwm.runtime import devices
from iwm.training import step
from iwm.training.optimisers import make_optimisers


def measure(options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for precision in options.precisions:
            settings = settings_of(size, precision, options)
            model = step.build(settings, options.device)
            ours, _ = make_optimisers(model, replace(settings.optim, kind="muon"), devices.dtype_of(precision))
            matrices = ours.param_groups[0]["params"]
            for weight in matrices:
                weight.grad = torch.randn_like(weight)
            ours.found_inf = torch.zeros((), device=options.device)  # pyright: ignore[reportAttributeAccessIssue]
            theirs = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            adamw = torch.optim.AdamW(matrices, lr=0.0, weight_decay=0.0, fused=True)
            field = [Contender("iwm", ours.step, 1), Contender("torch.optim.Muon", theirs.step, 1, "bf16 always")]
            field.append(Contender("fused AdamW", adamw.step, 1))
            rows += compare(field, options, size=size, matrices=len(matrices), precision=precision)
    show("Muon, updates a second", rows)
    return rows, []
