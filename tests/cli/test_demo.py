"""The demo: the shipped model, then a model trained anew, then all of it; each of use if one stops there."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import pictures_file, tiny

from iwm import cli, recipe_book, verbs
from iwm.cli import demo
from iwm.data.sources import open_images, open_pictures
from iwm.runtime.errors import Interrupted, UserError
from iwm.training import loop
from iwm.verbs.demo import Demo
from iwm.verbs.shared import Schedule


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few photos and versions, no step longer than seconds, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    settings = tiny(optim=replace(tiny().optim, batch_size=8), encoder=replace(tiny().encoder, patch_size=4))
    settings = replace(settings, data=replace(settings.data, image_size=16))
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(settings, recipe=name))
    monkeypatch.setattr("iwm.evaluation.world.changes.SHOWN", 2)
    monkeypatch.setattr(demo, "STEPS", 4)


PROBED = {"n_val": 119, "top1": 0.3, "random_encoder_top1": 0.1, "raw_pixels_top1": 0.2, "chance": 0.01}


def plan_of(photos: str, **options: object) -> demo.Plan:
    o = Demo(photos=photos, **options)  # pyright: ignore[reportArgumentType]
    opened = open_images("sample", "all") if photos == "sample" else open_pictures(photos)
    return demo.plan_of(o, opened)


def test_the_first_two_steps_from_nothing_but_the_package(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    done = []
    monkeypatch.setattr(verbs, "call", lambda name, *values, **options: done.append((name, values, options)))
    assert cli.main(["demo", "--quick"]) == 0
    shipped, run = Path("runs/demo-quick/shipped"), Path("runs/demo-quick")
    assert (shipped / "eval" / "imagine-changes-sample.png").is_file()
    assert "Imagined changes of sample" in (shipped / "report.html").read_text()
    assert (run / "stages.png").is_file()
    assert "Imagined while it was trained" in (run / "report.html").read_text()
    assert [name for name, _, _ in done] == ["decoder", "world"]
    printed = " ".join(capsys.readouterr().out.split())
    first, last = printed.index("rank: among 256 versions"), printed.index("Before the first step")
    assert first < printed.index("Ctrl-C stops here") < last
    assert "Without labels: of 119 held-out images" in printed
    assert "what the numbers say" in printed
    assert "(random encoder" in printed
    assert printed.rstrip().endswith("iwm demo sample")
    for words in ("when the model is told no change", "a guess has 128.5", "iwm imagine demo photo.jpg"):
        assert words in printed


def test_stopping_in_training_leaves_the_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*values: object, **options: object) -> None:
        raise Interrupted("Saved.")

    monkeypatch.setattr(loop, "pretrain", stop)
    with pytest.raises(Interrupted):
        demo.demo(Demo(quick=True))
    assert Path("runs/demo-quick/shipped/report.html").is_file()


def test_it_is_trained_on_your_photos_from_two_hundred_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = str(pictures_file(tmp_path / "few.npz", count=8))
    assert plan_of(few).source == "sample"
    many = str(pictures_file(tmp_path / "many.npz", count=demo.LEAST))
    plan = plan_of(many)
    assert plan.own
    assert plan.settings.data.source == many
    demo._say_what_on(Demo(photos=few), plan_of(few), 10)
    printed = " ".join(capsys.readouterr().out.split())
    assert "few.npz holds 10 of the 200 photos that training needs, so the embedded photos are taken" in printed
    with pytest.raises(UserError, match="nowhere"):
        demo.demo(Demo(photos=str(tmp_path / "nowhere")))
    assert not Path("runs").exists()


@pytest.mark.parametrize("count", [demo.LEAST, 2000])
def test_it_takes_about_the_same_number_of_steps_whatever_the_photos(tmp_path, monkeypatch, count) -> None:
    monkeypatch.undo()
    plan = plan_of(str(pictures_file(tmp_path / "photos.npz", count=count)))
    steps = plan.settings.optim.epochs * (count // plan.settings.optim.batch_size)
    assert 0.9 * demo.STEPS <= steps <= 1.1 * demo.STEPS
    assert plan.settings.optim.warmup_epochs == pytest.approx(plan.settings.optim.epochs / 10)
    assert plan_of("sample", quick=True).settings.optim.epochs == 1
    assert str(plan_of("sample", quick=True).out) == "runs/demo-quick"
    assert str(plan_of("sample").out) == "runs/demo"
    base = recipe_book.get("demo")
    assert plan.settings.optim.lr == base.optim.lr


@pytest.mark.parametrize(("quick", "epochs", "images"), [(True, 1, 8), (False, 5, 64)])
def test_in_full_twins_labelled_probes_and_the_finetuned_predictor(monkeypatch, tmp_path, quick, epochs, images):
    done = []
    monkeypatch.setattr(verbs.Verb, "run", lambda verb, options: done.append(options))
    plan = plan_of("sample", out=str(tmp_path))
    demo._measure_in_full(Demo(out=str(tmp_path), quick=quick, seed=3), plan)
    world, linear, knn, *tuned = done
    assert {(o.run, o.data, o.seed) for o in done} == {(str(tmp_path), "sample-objects", 3)}
    assert (world.images, world.frozen_random_twin) == (images, True)
    assert (linear.kind, knn.kind) == ("linear", "knn")
    assert [o.predictor for o in tuned] == ["pretrained", "random"]
    for o in tuned:
        assert (o.train, o.lrs, o.ratios, o.views, o.baselines) == ("predictor", (1e-3, 3e-3), (1.0,), 2, False)
        assert o.schedule == Schedule(epochs=epochs, search_epochs=1)


def test_a_run_called_demo_is_not_taken_for_the_shipped_model(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(loop, "pretrain", lambda settings, **options: None)
    monkeypatch.setattr(verbs, "call", lambda name, run, **options: done.append(run))
    monkeypatch.setattr("iwm.evaluation.tasks.probes.probe", lambda o: done.append(o.run) or PROBED)
    demo._train(Demo(out="demo"), plan_of("sample", out="demo"), 919)
    assert set(done) == {"./demo"}
