"""The last line of a pretraining: one number for images without labels."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import pictures_file, tiny, trained_on

from iwm.evaluation import after_pretraining
from iwm.run_folder import RunFolder


@pytest.mark.parametrize(("labelled", "count"), [(False, 64), (True, 64), (True, 128)])
def test_without_enough_labels_instances_are_probed(tmp_path: Path, capsys, labelled: bool, count: int) -> None:
    source = pictures_file(tmp_path / "pictures.npz", count, labelled=labelled)
    run = after_pretraining.pretrain(trained_on(tiny(), source=str(source), out=str(tmp_path / "run")))
    printed = " ".join(capsys.readouterr().out.split())
    results = [result["file"] for result in RunFolder(run).results()]
    online = ["probe_top1" in line for line in RunFolder(run).metric_lines()]
    assert any(online) == (labelled and count == 128)
    assert results == ([] if any(online) else ["probe-instance-pictures"])
    assert ("Without labels: of 16 held-out images" in printed) == bool(results)
    if results:
        assert "chance 6.2%)." in printed
    assert printed.endswith(f"on one page: iwm report {run}")


def test_what_cannot_be_measured_is_said_and_the_run_is_kept(tmp_path: Path, capsys) -> None:
    source = pictures_file(tmp_path / "pictures.npz", count=14, validation=False)  # of which one is held out
    optim = replace(tiny().optim, batch_size=8, lr_batch=8)
    settings = trained_on(tiny(optim=optim), source=str(source), out=str(tmp_path / "run"))
    run = after_pretraining.pretrain(settings)
    assert RunFolder(run).model.is_dir()
    assert "What the encoder knows was not measured. 'pictures' (val) holds a single image" in " ".join(
        capsys.readouterr().out.split()
    )
