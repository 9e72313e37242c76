"""What a line of metrics says of targets and of predicted changes, in words; a number it lacks is left out."""

from collections.abc import Mapping
from typing import Any

from iwm.runtime.bounds import finite

TOO_LINEAR, TOO_FIXED, TOO_INVARIANT = 0.8, 0.5, 0.05
"""Pixel R2 and position share above, and photometric share below which doctor says what that means for the targets."""


def _values(line: Mapping[str, Any], *names: str) -> list[float | None]:
    """The finite numbers of these names; None for any other value."""
    return [finite(line.get(name)) for name in names]


def of_targets(line: Mapping[str, Any]) -> list[str]:
    """What the targets are made of, and how far a change of colours moves them."""
    r2, position, rank, photometric, last = _values(
        line, "target_pixel_r2", "target_position_share", "target_rankme", "photometric_share", "photometric_share_last"
    )
    parts, sentences = [], []
    if r2 is not None:
        blocks = line.get("target_pixel_r2_blocks")
        numbers = [finite(one) for one in blocks] if isinstance(blocks, list | tuple) else []
        by_block = " ".join("?" if one is None else f"{one:.2f}" for one in numbers)
        by_block = by_block and f" (block by block {by_block})"
        parts.append(f"R2 {r2:.2f} from position and the patch's own pixels by a linear map{by_block}")
    if position is not None:
        parts.append(f"{position:.2f} from position alone")
    if rank is not None:
        parts.append(f"RankMe {rank:.0f} (directions they span)")
    if parts:
        sentences.append(f"Targets: {', '.join(parts)}.")
    if photometric is not None:
        words = f"Photometric share {photometric:.2f}: how far a change of colours moves the targets, over how far the "
        words += "mean of their position is off (squared; 0: invariant, 2: as far as another image)"
        sentences.append(words + ("." if last is None else f"; of the last block {last:.2f}."))
    return sentences


def of_changes(line: Mapping[str, Any]) -> list[str]:
    """How the predicted change follows the true one, where the predictor is told the action."""
    slope, correlation = _values(line, "action_slope", "action_correlation")
    if slope is None or correlation is None or not line.get("conditioned", 1.0):
        return []
    return [
        f"Predicted change on the true one: slope {slope:.2f} (1: it goes the whole way), correlation "
        f"{correlation:.2f} (1: straight in the true direction)."
    ]


def telling(line: Mapping[str, Any]) -> list[str]:
    """What it means where the targets are easy, fixed, or invariant beyond the limits above."""
    sentences = []
    r2, position, photometric = _values(line, "target_pixel_r2", "target_position_share", "photometric_share")
    if r2 is not None and r2 > TOO_LINEAR:
        sentences.append(
            f"The targets follow from position and the patch's own pixels by a linear map (R2 {r2:.2f}): predicting "
            "them asks for little else yet."
        )
    if position is not None and position > TOO_FIXED:
        sentences.append(f"{position:.0%} of the targets' variance is their position, whatever the image.")
    if photometric is not None and photometric < TOO_INVARIANT:
        sentences.append(
            f"The targets hardly change with the colours (photometric share {photometric:.3f}; 0 is invariant): there "
            "is little for the action to say."
        )
    return sentences
