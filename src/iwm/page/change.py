"""The change between two images: what the search through the predictor says, beside the search among pictures."""

from typing import Any

import torch

from iwm.actions.pixel_search import reach_with_flags
from iwm.evaluation.world.infer import answer_pair
from iwm.evaluation.world.strips import decibels
from iwm.model.world_model import ImageWorldModel
from iwm.page.pictures import Picture, data_uri
from iwm.page.sliders import sliders_of


def compare(
    model: ImageWorldModel, source: Picture, target: Picture, source_key: str, undo: bool, seed: int = 0
) -> dict[str, Any]:
    """Both answers by component, what each makes of the source, and the truth where the page made the target.

    With `undo` what the source may carry is sought too, which takes a descent for every combination of flags.
    """
    space = model.space
    answers = answer_pair(model, source.pixels[None], target.pixels[None], undo=undo, seed=seed)
    by_pixels = answers["pixel_search"]
    known = target.change if target.of == source_key else None
    rows = [
        {
            "name": slider.name,
            "label": slider.label,
            "predictor": answers["action"][slider.name],
            "pixels": by_pixels["action"][slider.name],
            "truth": None if known is None else known.get(slider.name, 0.0),
            "graded": slider.graded,
        }
        for slider in sliders_of(space)
    ]
    before, after = (picture.pixels.float() / 255 for picture in (source, target))
    results = {}
    for name, action in (("predictor", answers["action"]), ("pixels", by_pixels["action"])):
        vector = torch.tensor(
            [action[t.name] / (t.range if t.graded and t.range else 1) for t in space.transformations]
        )
        changed = space.apply(before[None], reach_with_flags(space, vector[None]))[0]
        results[name] = {
            "words": space.describe(vector),
            "picture": data_uri(changed),
            "psnr": decibels(before, after, changed, after)["psnr_prediction"],
        }
    return {
        "rows": rows,
        "results": results,
        "unchanged": decibels(before, after, before, after)["psnr_unchanged"],
        "residual": answers["residual"],
        "null_residual": answers["null_residual"],
    }
