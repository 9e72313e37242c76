"""The command line as a user meets it: bad input is one sentence and exit code 2, good input does what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures_file, tiny, trained_on
from picture_files import write

from iwm import cli, config, verbs
from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import Interrupted, UserError
from iwm.training import loop

SMALL = [
    "--data.image-size=16",
    "--encoder.patch-size=4",
    "--encoder.width=32",
    "--encoder.depth=2",
    "--encoder.heads=2",
    "--predictor.width=32",
    "--predictor.depth=2",
    "--objective.target-layers=2",
    "--optim.epochs=1",
    "--optim.batch-size=16",
    "--log-every=2",
    "--speed.precision=fp32",
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(pictures_file(tmp_path / "pictures.npz"))


@pytest.fixture
def run(trained: Path) -> str:
    """A trained run of a tiny model."""
    return str(trained)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The sentence a refused command prints; exit code 2, one line, no traceback."""
    assert cli.main(list(argv)) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "Traceback" not in said
    return said


def test_pretrain_resumes_from_its_own_configuration(tmp_path, source, capsys):
    out = tmp_path / "out"
    assert cli.main(["pretrain", "--out", str(out), "demo", "--data.source", source, *SMALL]) == 0
    assert cli.main(["pretrain", "--config", str(out / "config.yaml"), "--out", str(out), "--optim.epochs=2"]) == 0
    assert "Going on from step 4 of 8" in capsys.readouterr().out
    assert config.load(out / "config.yaml").optim.epochs == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretrian"], "did you mean 'pretrain'"),
        (["pretrain"], "Which recipe?"),
        (["pretrain", "cifar"], "did you mean 'cifar10'"),
        (["pretrain", "cifar10", "--out", "x"], "brings no pictures"),
        (["pretrain", "demo", "--objective.freeze-patches", "True"], "write --objective.freeze-patches for yes"),
        (["pretrain", "demo", "--optim.batchsize", "3"], "did you mean --optim.batch-size?"),
        (["pretrain", "demo", "--optim.batch-size", "many"], "--optim.batch-size is 'many'; give a whole number."),
        (["pretrain", "demo", "--optim.lr"], "Missing value for argument '--optim.lr'"),
        (["pretrain", "demo", "--predictor.conditioning", "adalm"], "did you mean 'adaln'?"),
        (["pretrain", "demo", "--config"], "--config needs a value"),
        (["pretrain", "--config", "absent.yaml"], "There is no file absent.yaml"),
        (["pretrain", "demo", "--data.source", "absent"], "absent"),
        (["world", "absent", "--data", "sample"], "There is no run at absent"),
        (["probe", "absent", "--data", "sample-objects", "--kind", "knn"], "There is no run at absent"),
        (["finetune", "absent", "--data", "sample-objects", "--train", "predictor"], "There is no run at absent"),
        (["segment", "absent", "--data", "sample-objects"], "There is no run at absent"),
        (
            ["segment", "absent", "--data", "sample-objects", "--train", "heads"],
            "no way to train 'heads'; did you mean 'head'?",
        ),
        (["segment", "absent", "--data", "sample-objects", "--ignore-index", "x"], "--ignore-index is 'x'; give a"),
        (["imagine", "absent", "x.png", "--action", "hue=0.1"], "There is no run at absent"),
        (["imagine", "absent", "x.png"], "Give --action"),
        (["imagine", "timm:vit_tiny_patch16_224", "x.png", "--sweep", "hue"], "an encoder without a predictor"),
        (["infer", "absent", "x.png"], "Give two images"),
        (["infer", "absent", "--data", "sample", "--images=0"], "--images 0"),
        (["look", "absent", "--data", "sample"], "There is no run at absent"),
        (["look", "absent", "--data", "sample", "--views", "0"], "--views 1"),
        (["undo", "absent", "--data", "sample-objects"], "There is no run at absent"),
        (["doctor", "absent"], "absent is not a run"),
        (["report", "absent"], "absent"),
        (["compare", "absent"], "absent"),
    ],
)
def test_bad_input_is_one_sentence(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["probe", "--k=0"], "--k 0"),
        (["probe", "--size=-1"], "--size -1"),
        (["probe", "--seed=-1"], "--seed -1"),
        (["finetune", "--size=-1"], "--size -1"),
        (["finetune", "--epochs=0"], "--epochs 0: give 1 or more"),
        (["finetune", "--lrs"], "--lrs"),
        (["finetune", "--lrs", "-0.001"], "--lrs -0.001"),
        (["finetune", "--ratios", "0"], "--ratios 0"),
        (["efficiency", "--lrs", "0"], "--lrs 0"),
        (["efficiency", "--depths", "9"], "--depths 9"),
        (["efficiency", "--blocks", "0"], "--blocks 0"),
        (["world", "--seed=-1"], "--seed -1"),
        (["world", "--images=0"], "--images 0: give 1 or more"),
        (["world", "--bank=1"], "--bank 1: give 2 or more"),
        (["world", "--speed.threads=-3"], "--speed.threads -3: give 0 or more"),
    ],
)
def test_numbers_that_make_no_sense(model, labelled, argv, said, capsys):
    assert said in refused(capsys, argv[0], model, "--data", labelled, *argv[1:])
    assert not (Path(model) / "eval").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """An untrained run."""
    folder = tmp_path_factory.mktemp("model")
    weights.export(ImageWorldModel(tiny()), folder / "model")
    return str(folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> str:
    return str(pictures_file(tmp_path_factory.mktemp("source") / "labelled.npz", labelled=True))


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (("1.png", "2.png", "3.png"), "has no labels"),
        (("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"), "Class 'c' of"),
        (("train/a/1.png", "train/b/1.png", "val/1.png"), "has one class only ('b')"),
        (("val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"), "no train/ folder"),
        (("train/a/1.png", "train/a/2.png", "val/a/1.png"), "no labels"),
    ],
)
@pytest.mark.parametrize("verb", ["probe", "finetune", "efficiency"])
def test_labelled_sources_that_will_not_do(model, tmp_path, verb, pictures, said, capsys):
    for name in pictures:
        write(tmp_path / "source" / name)
    assert said in refused(capsys, verb, model, "--data", str(tmp_path / "source"))


def test_classes_without_training_images_and_a_single_class(model, tmp_path, capsys):
    images = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    classes = np.array(["cat", "dog", "eel"])
    split = {"val_images": images, "classes": classes, "images": images}
    np.savez(tmp_path / "a.npz", labels=[0, 0, 1, 1], val_labels=[0, 1, 2, 2], **split)
    assert "Class 'eel'" in refused(capsys, "probe", model, "--data", str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", labels=[1, 1, 1, 1], images=images, classes=classes)
    assert "one class only ('dog')" in refused(capsys, "probe", model, "--data", str(tmp_path / "b.npz"))


def test_a_source_that_names_its_classes_otherwise(model, tmp_path, capsys):
    for place in ("one/a/1.png", "one/b/1.png", "two/a/1.png", "two/c/1.png"):
        write(tmp_path / place)
    argv = ["probe", model, "--data", str(tmp_path / "one"), "--val", str(tmp_path / "two")]
    assert "Class 'c' of" in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "Line 1 of"),
        ("[1, 2]", "Line 1 of"),
        ('{"loss": 1}', "Line 1 of"),
        ('{"step": "three"}', "Line 1 of"),
        ('{"step": 3}', "hold no number `loss`"),
        ('{"step": 3, "loss": "low"}', "hold no number `loss`"),
        ("\udcff\udcfe", "Line 1 of"),
    ],
)
def test_the_doctor_names_malformed_metrics(tmp_path, line, said, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(f"{line}\n".encode(errors="surrogateescape"))
    assert said in refused(capsys, "doctor", str(tmp_path))


def test_bad_sources(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(capsys, "pretrain", "demo", "--data.source", str(empty), "--out", str(tmp_path / "o"))
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK not a zip")
    assert "broken.zip" in refused(
        capsys, "pretrain", "demo", "--data.source", str(broken), "--out", str(tmp_path / "o")
    )


def test_sizes_that_do_not_fit(tmp_path, source, capsys):
    argv = ["pretrain", "demo", "--data.source", source, "--out", str(tmp_path / "o"), *SMALL]
    assert "do not divide into patches" in refused(capsys, *argv, "--data.image-size=18")
    assert "do not divide into patches" in refused(capsys, *argv, "--data.image-size=2")
    assert "batch" in refused(capsys, *argv, "--optim.batch-size=1000")


def test_a_run_of_another_configuration(run, source, capsys):
    argv = ["pretrain", "demo", "--data.source", source, "--out", run, *SMALL]
    assert "holds a run with" in refused(capsys, *argv)


def test_a_corrupt_checkpoint_and_weights(run, source, capsys):
    for state in Path(run).glob("checkpoints/*/state.safetensors"):
        state.write_bytes(b"no")
    assert "No checkpoint in" in refused(capsys, "pretrain", "--config", f"{run}/config.yaml", "--out", run)
    (Path(run) / "model" / "model.safetensors").write_bytes(b"no")
    assert "cannot be read" in refused(capsys, "world", run, "--data", source)


def test_labels_asked_of_an_unlabelled_source(run, source, capsys):
    assert "label" in refused(capsys, "probe", run, "--data", source, "--kind", "knn")
    assert "label" in refused(capsys, "finetune", run, "--data", source, "--train", "predictor")
    assert "has no array `masks`" in refused(capsys, "segment", run, "--data", source)


def test_the_doctor_speaks_in_exit_codes(run, capsys):
    assert cli.main(["doctor", run]) == 1  # eight steps: nothing learned yet
    assert "ill" in capsys.readouterr().out
    metrics = Path(run) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[-1].replace("{", '{"x": 0, ', 1) + "\n")
    good = '{"step": 9, "loss": 0.3, "health_loss": 0.3, "position_mean_loss": 0.9, "rankme": 30.0, '
    good += '"target_variance": 0.7, "action_sensitivity": 0.6}\n'
    metrics.write_text(good)
    assert cli.main(["doctor", run]) == 0
    assert "healthy" in capsys.readouterr().out


def test_world_probe_finetune_report_compare(tmp_path, capsys):
    source = str(pictures_file(tmp_path / "labelled.npz", count=80, labelled=True))
    settings = trained_on(tiny(), source=source, out=str(tmp_path / "run"))
    run = str(loop.pretrain(settings))
    assert cli.main(["world", run, "--data", source, "--images=4", "--bank=8", "--frozen-random-twin"]) == 0
    assert cli.main(["probe", run, "--data", source, "--kind", "linear"]) == 0
    assert cli.main(["probe", run, "--data", source, "--kind", "knn"]) == 0
    assert cli.main(["finetune", run, "--data", source, "--train", "predictor", "--epochs=1"]) == 0
    csv = str(tmp_path / "predictions.csv")
    assert cli.main(["predict", run, source, "--out", csv]) == 0
    assert len(Path(csv).read_text().splitlines()) == 101
    argv = ["efficiency", run, "--data", source, "--epochs=1", "--views=1", "--lrs", "1e-3", "--ratios", "1"]
    assert cli.main([*argv, "--depths", "1", "--blocks", "1"]) == 0
    assert cli.main(["report", run]) == 0
    assert cli.main(["compare", run, run]) == 0
    assert "pretrained predictor, 1 of 2 blocks" in (Path(run) / "report.html").read_text()
    said = capsys.readouterr().out
    for word in (
        "mrr_shuffled",
        "frozen_random_twin_mrr",
        "random_encoder_top1",
        "raw_pixels_top1",
        "trainable_parameters",
    ):
        assert word in said
    names = {p.name.split("-")[0] for p in (Path(run) / "eval").glob("*.json")}
    assert names == {"world", "probe", "finetune", "efficiency"}
    assert (Path(run) / "report.html").is_file()


def test_segment_report_compare(run, tmp_path, capsys):
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, (12, 4, 6), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    np.savez(tmp_path / "parts.npz", images=np.stack([masks] * 3, axis=-1) * 200, masks=masks)
    argv = ["segment", run, "--data", str(tmp_path / "parts.npz"), "--head=linear", "--epochs=1", "--lrs=1e-3"]
    assert cli.main([*argv, "--ignore-index=-1"]) == 0
    said = capsys.readouterr().out
    for word in ("miou", "random_encoder_miou", "majority_miou", "pixel_accuracy", "IoU of every class"):
        assert word in said
    assert cli.main(["report", run]) == 0
    page = (Path(run) / "report.html").read_text()
    assert "Segmented images" in page
    assert "segment-head-linear-parts: mIoU" in page
    assert cli.main(["compare", run, run]) == 0
    assert "miou" in capsys.readouterr().out


def test_recipes_are_listed(capsys):
    assert cli.main(["recipes"]) == 0
    assert "cifar10" in capsys.readouterr().out


def test_help_is_quick_and_lists_the_verbs():
    code = "import sys, iwm, iwm.cli; iwm.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "pretrain" in done.stdout


@pytest.mark.parametrize("words", [["sweep", "--help"], ["recipes"]])
def test_a_reader_that_stops_reading_is_no_error(words):
    code = f"import sys; from iwm.cli import main; sys.exit(main({words}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 141


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("One sentence."), 2, "One sentence."),
        (Interrupted("Saved at step 3."), 130, "Saved at step 3."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (FileNotFoundError(2, "No such file or directory", "a.npz"), 2, "a.npz cannot be used (No such file"),
        (OSError(28, "No space left on device", "RUN/x"), 2, "There is no space left for RUN/x (No"),
        (MemoryError(), 2, "Out of memory: "),
        (RuntimeError("CUDA error: out of memory"), 2, "Out of memory: "),
    ],
    ids=repr,
)
def test_what_goes_wrong_ends_in_a_sentence_and_a_code(monkeypatch, capsys, raised, code, said):
    def work(self, options):
        raise raised

    monkeypatch.setattr(verbs.Verb, "run", work)
    assert cli.main(["doctor", "run"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_mistake_of_our_own_is_not_dressed_up(monkeypatch):
    def work(self, options):
        raise RuntimeError("a shape does not fit")

    monkeypatch.setattr(verbs.Verb, "run", work)
    with pytest.raises(RuntimeError, match="a shape"):
        cli.main(["doctor", "run"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optim.batch-size", "0"], "optim.batch_size is 0; give 1 or more."),
        (["--speed.device", "gpu"], "speed.device is gpu; give auto, cpu, mps, cuda or cuda:N."),
    ],
    ids=str,
)
def test_a_setting_out_of_bounds_is_refused_without_torch(words, sentence):
    code = (
        "import sys; from iwm.cli import main; status = main(['pretrain', 'demo', *sys.argv[1:]]); "
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, sentence)
