"""Transformations of a user's own: what joins, what is refused with a sentence, and that nothing runs unasked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures_file, tiny, trained_on

from iwm import cli, config, run_folder
from iwm.actions import action_sets
from iwm.actions.action_space import ActionSpace
from iwm.actions.camera import CAMERA
from iwm.actions.reference import reference_space
from iwm.actions.transformation import read_transformations, set_name
from iwm.evaluation.world import mrr
from iwm.evaluation.world.strips import strip_rows
from iwm.model.world_model import ImageWorldModel
from iwm.runtime.errors import UserError
from iwm.training import loop

CODE = """
from pathlib import Path
from iwm import Transformation
Path(__file__).with_suffix(".ran").touch()
def gamma(images, value):
    return images ** value[:, None, None, None]
def fade(images, value):
    return images + value[:, None, None, None] * (1 - images)
GAMMA = Transformation(name="gamma", apply=gamma, graded=True, both=True, low=0.5, high=2.0, neutral=1.0,
                       probability=1.0)
FADE = Transformation(name="fade", apply=fade, graded=True, both=False, low=0.0, high=0.8, neutral=0.0, probability=0.5)
SET = (GAMMA, FADE)
"""


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch):
    monkeypatch.setattr(action_sets, "USERS", {})


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def test_a_set_of_your_own_is_an_action_space(mine):
    assert action_sets.import_set(f"{mine}:SET") == "mine.py:SET"
    cfg = config.Actions(set=f"elsewhere/{mine.name}:SET")
    space = ActionSpace.from_config(cfg, 16)
    assert (space.names, space.set) == (("gamma", "fade"), "mine.py:SET")
    source, target = (space.sample(0, 0, np.arange(50), view) for view in ("source", "target"))
    action = space.difference(source, target)
    torch.testing.assert_close(action[:, 0], (target.values[:, 0] - source.values[:, 0]) / 1.5)
    torch.testing.assert_close(action[:, 1], -source.values[:, 1] / 0.8)
    images = torch.rand(50, 3, 8, 8)
    values = source.values[:, :, None, None, None]
    expected = images ** values[:, 0]
    expected = expected + values[:, 1] * (1 - expected)
    torch.testing.assert_close(space.apply(images, source), expected)


def test_it_trains_travels_and_runs_only_when_named(mine, tmp_path, capsys, monkeypatch):
    ran = mine.with_suffix(".ran")
    source, out = str(pictures_file(tmp_path / "pictures.npz")), str(tmp_path / "run")
    base = tiny()
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: replace(base, recipe=name))
    named = f"{mine}:SET"
    assert cli.main(["pretrain", "demo", "--data.source", source, "--out", out, "--actions.set", named]) == 0
    capsys.readouterr()
    meta = json.loads((Path(out) / "model" / "config.json").read_text())
    assert meta["actions"]["set"] == "mine.py:SET", "no path of this machine"
    assert [t["origin"] for t in meta["actions"]["transformations"]] == ["", ""]

    # In a new process nothing is known, and neither the weights nor the run's config.yaml may bring the code in.
    action_sets.USERS.clear()
    ran.unlink()
    with pytest.raises(UserError, match=r"'gamma', which is not known here.*--actions PATH/mine\.py:SET"):
        run_folder.load_model(out)
    assert cli.main(["world", out, "--data", source]) == 2
    assert cli.main(["pretrain", "--config", f"{out}/config.yaml", "--out", out]) == 2
    assert "has not been loaded" in capsys.readouterr().err
    assert not ran.exists()
    argv = ["world", out, "--data", source, "--images=2", "--bank=8", "--actions", named]
    assert cli.main(argv) == 0
    assert ran.exists()
    (result,) = (Path(out) / "eval").glob("world-*.json")
    assert {"mrr", "inferred_gamma_error"} <= set(json.loads(result.read_text()))
    assert cli.main(["pretrain", "--config", f"{out}/config.yaml", "--out", out, f"--actions={named}"]) == 0


def test_predictions_mrr_and_strips_use_it(mine):
    action_sets.import_set(f"{mine}:SET")
    torch.manual_seed(0)
    settings = tiny(actions=config.Actions(set="mine.py:SET", jitter_probability=1.0))
    model = ImageWorldModel(settings).eval()
    assert model.action(gamma=0.75, fade=-0.4).tolist() == [0.5, -0.5]
    assert reference_space(model.space, 16) is model.space
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    measured = mrr.measure(model, images, bank=8)
    assert 0 < measured["mrr"] <= 1
    rows = strip_rows(model, images, 0, bank=8)
    assert ["fade" in row.action for row in rows] == [False, False, True]
    assert "fade -0.80" in rows[-1].action, "shown at its strongest"


def test_another_sets_transformation_of_the_same_name_is_not_taken(mine):
    """The camera's gamma and the user's are two: weights name the one they were trained with."""
    camera = ActionSpace.from_config(config.Actions(set="camera"), 16)
    action_sets.import_set(f"{mine}:SET")
    own = ActionSpace.from_config(config.Actions(set="mine.py:SET"), 16)
    assert ActionSpace.from_spec(own.spec()).transformations[0].apply is own.transformations[0].apply
    assert ActionSpace.from_spec(camera.spec()).transformations[0].apply is CAMERA[0].apply
    action_sets.USERS.clear()
    with pytest.raises(UserError, match="'gamma', which is not known"):
        ActionSpace.from_spec(own.spec())


def test_weights_older_than_the_sets_still_load():
    spec = ActionSpace.from_config(config.Actions(), 16).spec()
    old = {"transformations": [{k: v for k, v in t.items() if k != "origin"} for t in spec["transformations"]]}
    again = ActionSpace.from_spec({**old, "random_order": False})
    assert again.spec() == spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("return images **", "return undefined **"), r"Applying 'gamma' fails \(NameError"),
        (("return images ** value", "return 2 + images ** value"), "leaves \\[0, 1\\]"),
        (("return images ** value[:, None, None, None]", "return value"), "as many of the same size"),
        (("neutral=1.0", "neutral=3.0"), "outside its range 0.5 to 2"),
        (("neutral=1.0", "neutral=1.0, sample=lambda u: 9 * u"), "samples is not within its range"),
        (('name="fade"', 'name="gamma"'), "two transformations called 'gamma'"),
        (('name="fade"', 'name="my fade"'), "cannot name a transformation"),
        (("graded=True, both=True", "graded=False, both=True"), "no graded transformation of both views"),
        (("SET = (GAMMA", "SETS = (GAMMA"), "did you mean 'SETS'"),
        (("SET = (GAMMA, FADE)", "SET = 3"), "no iwm.Transformation"),
        (("def gamma", "import nowhere_to_be_found\ndef gamma"), "cannot be run .ModuleNotFoundError"),
        (("def gamma", "def 1gamma"), "cannot be run .SyntaxError"),
        (("def gamma", "raise SystemExit(3)\ndef gamma"), "cannot be run .SystemExit: 3"),
        (("neutral=1.0", "neutral=1.0, sample=lambda u: u.nothing"), "Sampling 'gamma' fails .AttributeError"),
        (
            (
                "SET = (GAMMA",
                "from dataclasses import replace\n"
                "GAMMA, FADE = (replace(t, group='g', both=True) for t in (GAMMA, FADE))\nSET = (GAMMA",
            ),
            "of one group, 'g', .* probabilities 1 and 0.5",
        ),
    ],
)
def test_what_cannot_join_is_one_sentence(mine, change, said):
    assert change[0] in CODE
    mine.write_text(CODE.replace(*change))
    with pytest.raises(UserError, match=said):
        action_sets.import_set(f"{mine}:SET")
    assert not action_sets.USERS


@pytest.mark.parametrize("text", ["mine.py", "mine.txt:SET", "mine.py:not a name", "absent.py:SET"])
def test_what_names_no_code(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"give (the )?PATH\.py:NAME"):
        read_transformations(text)


def test_a_value_that_a_transformation_refuses_is_one_sentence(mine):
    body = "return images ** value[:, None, None, None]"
    mine.write_text(CODE.replace(body, f"assert bool((value <= 2).all()), 'too much'\n    {body}", 1))
    action_sets.import_set(f"{mine}:SET")
    space = ActionSpace.from_config(config.Actions(set="mine.py:SET"), 16)
    reached = space.reach(space.encode(gamma=3.0)[None])
    with pytest.raises(UserError, match=r"'gamma' with 4 to 4 fails .AssertionError: too much.* its range, 0\.5 to 2"):
        space.apply(torch.rand(1, 3, 8, 8), reached)


def test_a_small_change_of_a_small_range_is_told(mine):
    mine.write_text(CODE.replace("low=0.0, high=0.8", "low=0.0, high=0.004"))
    action_sets.import_set(f"{mine}:SET")
    space = ActionSpace.from_config(config.Actions(set="mine.py:SET"), 16)
    assert space.describe(space.encode(gamma=0.5, fade=-0.004)) == "gamma +0.50, fade -0.0040"
    assert space.describe(space.encode()) == "as it is"


def test_another_file_does_not_stand_for_the_set_that_trained(mine, tmp_path):
    """Its transformations may have the same names and do something else."""
    action_sets.import_set(f"{mine}:SET")
    spec = ActionSpace.from_config(config.Actions(set="mine.py:SET"), 16).spec()
    action_sets.USERS.clear()
    other = tmp_path / "other.py"
    other.write_text(CODE)
    action_sets.import_set(f"{other}:SET")
    with pytest.raises(UserError, match=r"'gamma', which is not known here.*PATH/mine\.py:SET"):
        ActionSpace.from_spec(spec)


def test_a_run_goes_on_from_wherever_the_file_of_its_set_lies(mine, tmp_path):
    source, out = str(pictures_file(tmp_path / "pictures.npz")), str(tmp_path / "out")
    action_sets.import_set(f"{mine}:SET")
    for folder, epochs in ((str(tmp_path), 1), (".", 2)):
        optim = replace(tiny().optim, epochs=epochs)
        settings = tiny(actions=config.Actions(set=f"{folder}/mine.py:SET"), optim=optim)
        loop.pretrain(trained_on(settings, source=source, out=out))
    assert run_folder.RunFolder(Path(out)).settings().actions.set == "mine.py:SET"


def test_a_set_that_was_not_loaded_is_named_before_training(tmp_path):
    settings = tiny(actions=config.Actions(set="absent.py:SET"))
    source = str(pictures_file(tmp_path / "pictures.npz"))
    with pytest.raises(UserError, match=r"absent\.py:SET, that has not been loaded"):
        loop.pretrain(trained_on(settings, source=source, out=str(tmp_path / "out")))
    assert set_name("a/b/mine.py:SET") == "mine.py:SET"
