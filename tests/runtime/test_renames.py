"""A renamed setting: files keep working, typed names work for one version with a sentence, then are refused with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import pictures_file, tiny, trained_on

import iwm
from iwm import cli, config
from iwm.runtime import renames
from iwm.runtime.errors import UserError
from iwm.runtime.fields import flatten, to_dict
from iwm.runtime.renames import Rename

TABLE = {
    "optim.rate": Rename("optim.lr", since="0.7"),
    "freeze": Rename("encoder.train", since="0.7", values={True: "none", False: "all"}),
    "data.colour": Rename("actions.hue", since="0.7"),
}


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "version", lambda name: "0.7.3")


def test_files_of_any_age_are_read_without_a_word(capsys):
    old = {"optim": {"rate": 0.1, "epochs": 3}, "freeze": True, "data": {"colour": 0.2}}
    assert renames.in_file(old, TABLE) == {
        "optim": {"lr": 0.1, "epochs": 3},
        "encoder": {"train": "none"},
        "actions": {"hue": 0.2},
    }
    assert old["freeze"] is True, "the caller's own stays as it is"
    assert renames.in_file({"optim": {"lr": 1.0}}, TABLE) == {"optim": {"lr": 1.0}}
    assert renames.in_file({"actions": None, "data": {"colour": 0.2}}, TABLE)["actions"] is None, "refused by its name"
    assert capsys.readouterr().out == ""


def test_typed_names_work_in_the_version_that_renamed_them_with_a_sentence(capsys):
    words = ["demo", "--optim.rate", "0.1", "--optim.rate=0.2", "--freeze", "--no-freeze", "--data.colour=0.3"]
    assert renames.in_words(words, TABLE) == [
        *("demo", "--optim.lr", "0.1", "--optim.lr=0.2", "--encoder.train", "none", "--encoder.train", "all"),
        "--actions.hue=0.3",
    ]
    assert renames.in_keywords({"optim.rate": 0.1, "freeze": False, "seed": 1}, TABLE) == {
        "optim.lr": 0.1,
        "encoder.train": "all",
        "seed": 1,
    }
    said = capsys.readouterr().err
    assert "optim.rate is called optim.lr since iwm 0.7; the old name works in this version only." in said


@pytest.mark.parametrize("later", ["0.8.0", "1.0.0", "0.10.1"])
def test_later_versions_refuse_them_by_the_new_name(monkeypatch, later):
    monkeypatch.setattr(renames, "version", lambda name: later)
    with pytest.raises(UserError, match=r"optim.rate was renamed in iwm 0.7; give optim.lr"):
        renames.in_words(["--optim.rate", "1"], TABLE)
    with pytest.raises(UserError, match=r"freeze was renamed in iwm 0.7; give encoder.train"):
        renames.in_keywords({"freeze": True}, TABLE)
    assert renames.in_file({"freeze": True}, TABLE) == {"encoder": {"train": "none"}}


def test_every_line_of_the_table_leads_to_a_setting_that_exists():
    known = flatten(to_dict(config.Config()))
    for old, rename in config.RENAMED.items():
        assert old not in known
        assert rename.now in known


def test_the_old_name_trains_from_the_command_line_from_python_and_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(renames, "version", lambda name: "0.1.0")
    monkeypatch.setattr("iwm.recipe_book.get", lambda name: tiny(recipe=name))
    source, seen = str(pictures_file(tmp_path / "p.npz")), []
    monkeypatch.setattr("iwm.evaluation.after_pretraining.pretrain", lambda s, **more: seen.append(s) or Path("run"))
    argv = ["pretrain", "demo", "--data.source", source, "--out", "run"]
    assert cli.main([*argv, "--optim.freeze-encoder"]) == 0
    assert "optim.freeze_encoder is called encoder.train since iwm 0.1" in capsys.readouterr().err
    iwm.pretrain("demo", data=source, out="run", **{"optim.freeze_encoder": True})
    values = to_dict(trained_on(replace(tiny(), recipe="demo"), source=source, out="run"))
    values["optim"]["freeze_encoder"] = True
    del values["encoder"]["train"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    assert cli.main(["pretrain", "--config", str(tmp_path / "old.yaml")]) == 0
    assert [settings.encoder.train for settings in seen] == ["none", "none", "none"]
