"""Pretrain on the embedded images, evaluate, finetune the predictor, write report.html."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Demo:
    out: str = ""
    """Folder of the run; by default runs/demo, or runs/demo-quick."""
    quick: bool = False
    """A minute's run that shows every step; too short to learn much."""
    seed: int = 0


OPTIONS = Demo
WORK = "iwm.cli.demo:demo"
