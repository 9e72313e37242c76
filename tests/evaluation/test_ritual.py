"""Results are named by verb, variant and data; nothing on disk is ever replaced by another result."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from iwm import run_folder
from iwm.evaluation import ritual
from iwm.runtime import console
from iwm.runtime.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    return str(tmp_path / "run")


def test_a_repeat_replaces_only_itself(run: str) -> None:
    first = ritual.save(run, "probe", "cifar10", {"top1": 0.5}, {"seed": 0, "k": 20}, variant="knn")
    again = ritual.save(run, "probe", "cifar10", {"top1": 0.6}, {"k": 20, "seed": 0}, variant="knn")
    assert first == again == Path(run) / "eval" / "probe-knn-cifar10.json"
    assert json.loads(first.read_text())["top1"] == 0.6


def test_other_settings_get_another_name(run: str) -> None:
    first = ritual.save(run, "probe", "cifar10", {"top1": 0.5}, {"seed": 0}, variant="knn")
    other = ritual.save(run, "probe", "cifar10", {"top1": 0.6}, {"seed": 1}, variant="knn")
    assert other != first
    assert other.name.startswith("probe-knn-")
    assert other.name.endswith("-cifar10.json")
    assert json.loads(first.read_text())["top1"] == 0.5
    assert ritual.save(run, "probe", "cifar10", {"top1": 0.7}, {"seed": 1}, variant="knn") == other
    assert [row["top1"] for row in run_folder.read_results(run)] == [0.7, 0.5]


def test_a_damaged_file_is_neither_read_nor_replaced(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = ritual.save(run, "world", "sample", {"mrr": 0.5}, {"seed": 0})
    path.write_text("{")
    assert ritual.save(run, "world", "sample", {"mrr": 0.5}, {"seed": 0}) != path
    assert path.read_text() == "{"
    assert [row["mrr"] for row in run_folder.read_results(run)] == [0.5]
    assert "no readable result" in capsys.readouterr().out


def test_every_result_says_how_it_was_made(run: str) -> None:
    path = ritual.save(run, "world", "sample", {"mrr": np.float32(0.5), "bad": math.nan}, {"seed": 3, "pair": (1, 2)})
    content = json.loads(path.read_text())
    assert content["seed"] == 3
    assert content["settings"] == {"seed": 3, "pair": [1, 2]}
    assert content["mrr"] == 0.5
    assert content["bad"] is None
    assert {"command", "hardware", "date", "fingerprint"} <= set(content)
    assert content["hardware"]["torch"]


def test_a_run_has_one_folder_whatever_its_spelling(run: str, tmp_path: Path) -> None:
    weights = Path(run) / "model" / "model.safetensors"
    weights.touch()
    assert run_folder.run_folder(run) == Path(run)
    assert run_folder.run_folder(f"{run}/model") == run_folder.run_folder(str(weights)) == Path(run)
    assert run_folder.run_folder("timm:vit_tiny_patch16_224,weights=w.pth") == Path(
        "iwm-eval/timm-vit_tiny_patch16_224"
    )
    assert run_folder.run_folder("hf-hub:user/name") == Path("iwm-eval/hf-hub-user-name")
    assert run_folder.run_folder("hf-hub:user/name", str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no run at"):
        run_folder.run_folder(str(tmp_path / "nowhere"))


def test_names_are_fit_for_files(run: str) -> None:
    path = ritual.save(run, "probe", "my data/a:b", {}, {"seed": 0}, variant="last-2")
    assert path.name == "probe-last-2-my-data-a-b.json"
    birds = [ritual.save(run, "probe", "\u9ce5" * 80 + end, {}, {"data": end}) for end in "ab"]
    assert birds[0] != birds[1]
    assert all(len(path.name.encode()) < 200 for path in birds)


def test_tables_show_fractions_and_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    console.show("Probe", {"top1": 0.51234, "images": 50000, "twin": None})
    printed = capsys.readouterr().out
    assert "0.5123" in printed
    assert "50,000" in printed
    assert "-" in printed
