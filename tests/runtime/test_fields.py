"""Settings from dictionaries and back: every name and type is checked."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from iwm.config import Config, Optim
from iwm.runtime import fields
from iwm.runtime.errors import UserError

PATHS = """
from pathlib import Path
from iwm.config import Config, Data, Run
settings = Config(init=Path("one"), data=Data(source=Path("/data")), run=Run(out=Path("runs/two")))
print(settings.init, settings.data.source, settings.run.out)
"""


def test_flatten():
    assert fields.flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "d": [2]}


def test_an_unknown_setting_is_named_with_its_neighbour():
    with pytest.raises(UserError, match=r"'optim.batchsize': did you mean 'batch_size'"):
        fields.from_dict(Config, {"optim": {"batchsize": 3}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim": {"epochs": "many"}}, "'optim.epochs' must be int, got 'many'"),
        ({"optim": {"epochs": True}}, "'optim.epochs' must be int"),
        ({"optim": {"lr": "1e-3x"}}, "'optim.lr' must be float"),
        ({"data": {"crop_area": [0.3]}}, "'data.crop_area' must be"),
        ({"predictor": {"init": "xavir"}}, "did you mean 'xavier'"),
        ({"optim": 3}, "'optim' must be a group"),
        ({"optim": {3: 4}}, "Unknown setting 'optim.3'"),
        ({"optim": {"lr": 10**400}}, "'optim.lr' must be float"),
        ({"run": {"resume": 1}}, "'run.resume' must be bool"),
    ],
)
def test_a_wrong_type_is_named(values, said):
    with pytest.raises(UserError) as caught:
        fields.from_dict(Config, values)
    assert said in str(caught.value)


def test_whole_numbers_and_yamls_idea_of_a_fraction_are_welcome():
    assert fields.from_dict(Config, {"optim": {"lr": 1}}).optim.lr == 1.0
    assert fields.from_dict(Config, {"optim": {"steps": np.int64(4), "lr": np.float32(0.5)}}).optim == Optim(
        steps=4, lr=0.5
    )
    assert fields.from_dict(Config, yaml.safe_load("optim: {lr: 1e-3}")).optim.lr == 1e-3


def test_paths_become_text_that_still_means_them():
    assert fields.as_text("sample") == "sample"
    assert fields.as_text(Path("sample")) == "./sample"
    assert fields.as_text(Path("/data/a, b")) == "/data/a, b"
    # In a process of its own: here the arguments of settings are checked against their annotations.
    assert (
        subprocess.run([sys.executable, "-c", PATHS], capture_output=True, text=True).stdout == "./one /data runs/two\n"
    )
