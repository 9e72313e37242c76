"""A dry run of a sweep names its cells and adds up their pretrainings."""

import json
import shutil
import signal

from conftest import pictures_file, tiny

from iwm import cli
from iwm.training.step import Training


def test_cells_and_steps_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny(recipe=name))
    source = str(pictures_file(tmp_path / "p.npz", labelled=True))
    argv = ["sweep", "demo", "--data.source", source, "--out", "out", "--conditionings", "none,adaln"]
    argv += ["--levels", "jitter", "--predictors", "1x32"]
    assert cli.main([*argv, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert cli.main([*argv, "--list", "--json"]) == 0
    commands = json.loads(capsys.readouterr().out)
    assert [row["command"].split("--cell ")[1] for row in commands] == plan["cells"]
    assert plan["steps"] == 8 * len(plan["cells"])
    assert plan["seconds"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    assert len(plan["cells"]) > 1
    assert cli.main([*argv, "--dry-run", "--optim.warmup-epochs", "100"]) == 0
    assert capsys.readouterr().err.count("still rises") == 1, "said of every cell"


def test_fewer_images_are_fewer_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny(recipe=name))
    source = str(pictures_file(tmp_path / "p.npz", labelled=True))
    argv = ["sweep", "demo", "--data.source", source, "--out", "out", "--conditionings", "none", "--levels", "jitter"]
    argv += ["--predictors", "1x32", "--images", "24", "--no-linear", "--attentive-epochs", "0"]
    argv += ["--finetune-epochs", "0", "--world-images", "8", "--bank", "4"]
    assert cli.main([*argv, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert cli.main(argv) == 0
    (metrics,) = tmp_path.glob("out/*/metrics.jsonl")
    last = [row["step"] for line in metrics.read_text().splitlines() if "step" in (row := json.loads(line))][-1]
    assert (plan["images"], plan["steps"]) == (24, last)
    capsys.readouterr()
    (run,) = (path.parent for path in tmp_path.glob("out/*/metrics.jsonl"))
    shutil.rmtree(run / "checkpoints")  # a cell that is trained needs none
    (measured,) = tmp_path.glob("out/*/eval/world-*.json")
    before = measured.read_text()
    assert cli.main([*argv, "--dry-run", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["cells"], done["steps"]) == ([], 0), "what is finished is not left"
    measured.unlink()
    assert cli.main([*argv, "--dry-run", "--json"]) == 0
    left = json.loads(capsys.readouterr().out)
    assert (len(left["cells"]), left["steps"]) == (1, 0), "what is trained and not measured is"
    measured.write_text(before)


def test_a_cell_that_has_begun_goes_on_as_the_sweep_does(tmp_path, monkeypatch, capsys):
    """On the images that were written for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny(recipe=name))
    source = str(pictures_file(tmp_path / "p.npz", labelled=True))
    argv = ["sweep", "demo", "--data.source", source, "--out", "out", "--conditionings", "none", "--levels", "jitter"]
    argv += ["--predictors", "1x32", "--images", "48", "--no-linear", "--attentive-epochs", "0"]
    argv += ["--finetune-epochs", "0", "--world-images", "8", "--bank", "4"]
    real = Training.step

    def stopping(self, batch):
        if batch.step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopping)
        assert cli.main(argv) == 130
    capsys.readouterr()
    assert cli.main([*argv, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["images"], plan["steps"]) == (48, 2)
    assert cli.main(argv) == 0


def test_tokens_that_cells_share_are_counted_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny(recipe=name))
    row = {"disk_gb": 5.0, "tokens_gb": 4.0, "steps_left": 1, "time": "a minute", "seconds": 60.0, "images": 64}
    monkeypatch.setattr("iwm.training.estimate.pretrain", lambda settings, images: row)
    source = str(pictures_file(tmp_path / "p.npz", labelled=True))
    argv = ["sweep", "demo", "--data.source", source, "--out", "out", "--conditionings", "none,adaln"]
    argv += ["--levels", "jitter,strong", "--predictors", "1x32", "--design", "full", "--dry-run", "--json"]
    assert cli.main(argv) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["cells"]) == 4
    assert plan["disk_gb"] == 4 * 1 + 2 * 4, "every level has views of its own"
