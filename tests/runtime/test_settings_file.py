import pytest

from iwm.runtime import settings_file
from iwm.runtime.errors import UserError


def test_an_unreadable_file_is_empty_when_unchecked(tmp_path):
    path = tmp_path / "config.yaml"
    assert settings_file.read_unchecked(path) == {}
    for text in ("a: [", "3", ""):
        path.write_text(text)
        assert settings_file.read_unchecked(path) == {}
    path.write_text("old: {setting: 1}")
    assert settings_file.read_unchecked(path) == {"old": {"setting": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("3", "no settings"),
        ("recipe: 2020-13-45", "not valid YAML .month must be in 1..12"),
        ("a: {b: 1}\nc: 2\na: {d: 3}", "it has 'a' twice"),
        ("a: {b: 1, b: 2}", "it has 'b' twice"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        settings_file.read(path)
    with pytest.raises(UserError, match="There is no file"):
        settings_file.read(tmp_path / "absent.yaml")
