"""The demo does the documented steps in their order; what they compute is tested where they are."""

import pytest
from conftest import tiny

from iwm import verbs
from iwm.cli import demo
from iwm.verbs.demo import Demo
from iwm.verbs.shared import Schedule


@pytest.mark.parametrize(("quick", "epochs", "images"), [(True, 1, 8), (False, 5, 64)])
def test_the_steps_and_their_sizes(monkeypatch, tmp_path, quick, epochs, images):
    done = []
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny())
    monkeypatch.setattr("iwm.training.loop.pretrain", lambda settings: done.append(settings))
    monkeypatch.setattr(verbs.Verb, "run", lambda verb, options: done.append(options))
    monkeypatch.setattr("iwm.reports.page.write", lambda run: run / "page")
    assert demo.demo(Demo(out=str(tmp_path), quick=quick, seed=3)) == tmp_path / "page"
    pretrained, world, linear, knn, *tuned = done
    assert (pretrained.run.out, pretrained.run.seed) == (str(tmp_path), 3)
    assert pretrained.optim.epochs == (1 if quick else tiny().optim.epochs)
    assert {(o.run, o.data, o.seed) for o in done[1:]} == {(str(tmp_path), "sample-objects", 3)}
    assert world.images == images
    assert (linear.kind, knn.kind) == ("linear", "knn")
    assert [o.predictor for o in tuned] == ["pretrained", "random"]
    for o in tuned:
        assert (o.train, o.lrs, o.ratios, o.views, o.baselines) == ("predictor", (1e-3, 3e-3), (1.0,), 2, False)
        assert o.schedule == Schedule(epochs=epochs, search_epochs=1)


def test_where_it_goes_by_default(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iwm.training.loop.pretrain", lambda settings: None)
    monkeypatch.setattr(verbs.Verb, "run", lambda verb, options: None)
    monkeypatch.setattr("iwm.reports.page.write", lambda run: run)
    assert [str(demo.demo(Demo(quick=quick))) for quick in (False, True)] == ["runs/demo", "runs/demo-quick"]
