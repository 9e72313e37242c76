"""Two references are compared value by value, and what a clock says is left out."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.compare_reference import compare


def planted(folder: Path, mrr: float = 0.5, weight: float = 1.0, speed: float = 10.0, line: str = "healthy") -> Path:
    folder.mkdir()
    result = {"mrr": mrr, "weights": f"{folder}/model", "images_per_second": speed, "hardware": {"cores": int(speed)}}
    (folder / "world.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": mrr, "waited_share": speed}) + "\n")
    save_file({"w": np.array([weight, float("nan")], dtype=np.float32)}, folder / "model.safetensors")
    (folder / "doctor.txt").write_text(f"{line}\nstep 1  {speed} images/s\n")
    return folder


def test_speeds_and_places_make_no_difference(tmp_path: Path) -> None:
    count, differences = compare(planted(tmp_path / "a"), planted(tmp_path / "b", speed=11.0))
    assert differences == []
    assert count == 4 + 6


def test_every_other_difference_is_told(tmp_path: Path) -> None:
    one = planted(tmp_path / "a")
    other = planted(tmp_path / "b", mrr=0.5000000001, weight=1.0000001, line="ill")
    (other / "more.png").touch()
    told = "\n".join(compare(one, other)[1])
    for where in (
        "more.png: only in",
        "world.json: mrr",
        "metrics.jsonl: 0.loss",
        "model.safetensors: w",
        "doctor.txt: 0",
    ):
        assert where in told
    assert len(told.splitlines()) == 5
