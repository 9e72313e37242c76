"""Settings from dictionaries and back: every name and type is checked."""

import pytest
import yaml

from iwm.config import Config
from iwm.runtime import fields
from iwm.runtime.errors import UserError


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
        ({"run": {"resume": 1}}, "'run.resume' must be bool"),
    ],
)
def test_a_wrong_type_is_named(values, said):
    with pytest.raises(UserError) as caught:
        fields.from_dict(Config, values)
    assert said in str(caught.value)


def test_whole_numbers_and_yamls_idea_of_a_fraction_are_welcome():
    assert fields.from_dict(Config, {"optim": {"lr": 1}}).optim.lr == 1.0
    assert fields.from_dict(Config, yaml.safe_load("optim: {lr: 1e-3}")).optim.lr == 1e-3
