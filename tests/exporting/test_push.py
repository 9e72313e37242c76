"""`iwm push` by the hub's own client to a stand-in server on loopback, and back from an empty cache."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hub_server import TOKEN, Hub, Repository, served
from huggingface_hub import constants

import iwm
from exporting.models import world
from iwm import cli
from iwm.exporting import push
from iwm.exporting.hub_folder import licence_of
from iwm.run_folder import load_model
from iwm.runtime.errors import UserError
from iwm.verbs.push import Push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own uploads


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, where this process's client finds it, with an empty cache and a token."""
    with served() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.utils.disable_progress_bars()
        yield server
        huggingface_hub.utils.enable_progress_bars()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return world(tmp_path / "run", decoder=True)


LOADED = """
import sys, iwm, timm, torch
world, whole = iwm.load("hf-hub:me/photos"), iwm.ImageWorldModel.from_pretrained("me/photos@main")
assert world.decodes and whole.decodes and not whole.training
encoder = timm.create_model("hf-hub:me/photos-encoder", pretrained=True)
torch.save([one.state_dict() for one in (world, whole, encoder)], sys.argv[1])
"""


def test_what_was_pushed_comes_back_from_an_empty_cache(run, hub, capsys):
    assert cli.main(["push", str(run), "me/photos", "--encoder-as", "me/photos-encoder", "--photos", "1"]) == 0
    printed = capsys.readouterr()
    assert f"Sent: {hub.address}/me/photos/commit/" in printed.out
    assert TOKEN not in printed.out + printed.err
    assert {name: repository.private for name, repository in hub.repositories.items()} == {
        "me/photos": True,
        "me/photos-encoder": True,
    }
    assert {"README.md", "imagined.png", "model.safetensors"} <= hub.repositories["me/photos"].files.keys()
    assert "PUT /lfs/" in "".join(hub.requests)
    card = hub.repositories["me/photos"].files["README.md"].decode()
    assert 'timm.create_model("hf-hub:me/photos-encoder", pretrained=True)' in card
    model, encoder = load_model(run), timm.create_model("hf-hub:me/photos-encoder", pretrained=True)
    for back, truth in (
        (iwm.load("hf-hub:me/photos"), model),
        (iwm.ImageWorldModel.from_pretrained("me/photos@main"), model),
        (encoder, model.target_encoder),
    ):
        assert back.state_dict().keys() == truth.state_dict().keys()
        assert all(torch.equal(value, truth.state_dict()[name]) for name, value in back.state_dict().items())
    assert iwm.load("hf-hub:me/photos").decodes


def test_a_second_push_leaves_no_decoder_or_strip_of_the_first_and_keeps_files_of_others(run, hub, tmp_path, capsys):
    iwm.push(run, "me/photos", photos=1)
    files = hub.repositories["me/photos"].files
    files |= {"notes.md": b"mine", ".gitattributes": b""}
    assert {"decoder.safetensors", "imagined.png", "photos-attribution.csv"} <= files.keys()
    capsys.readouterr()
    iwm.push(world(tmp_path / "without", decoder=False), "me/photos", photos=0)
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "notes.md", ".gitattributes"}
    words = " ".join(capsys.readouterr().out.split())
    assert "Deleted there, of an earlier model: decoder.safetensors, imagined.png, photos-attribution.csv." in words
    assert not iwm.load("hf-hub:me/photos").decodes


@pytest.mark.long
def test_the_same_by_the_command_and_plain_python_in_processes_of_their_own(run, tmp_path):
    with served() as hub:
        addresses = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **addresses, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "one")}
        words = ["push", str(run), "me/photos", "--encoder-as", "me/photos-encoder", "--photos", "1"]
        pushed = subprocess.run(
            [sys.executable, "-m", "iwm.cli", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert pushed.returncode == 0, pushed.stderr
        assert f"Sent: {hub.address}/me/photos/commit/" in pushed.stdout
        assert TOKEN not in pushed.stdout + pushed.stderr
        environment["HF_HOME"] = str(tmp_path / "two")
        loaded = subprocess.run(
            [sys.executable, "-c", LOADED, str(tmp_path / "states.pt")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert loaded.returncode == 0, loaded.stderr
    model = load_model(run)
    world_state, whole, encoder = torch.load(tmp_path / "states.pt")
    for state, truth in ((world_state, model), (whole, model), (encoder, model.target_encoder)):
        assert state.keys() == truth.state_dict().keys()
        assert all(torch.equal(value, truth.state_dict()[name]) for name, value in state.items())


def test_a_dry_run_shows_what_would_go_and_asks_nobody(run, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    result = iwm.push(run, "me/photos", dry_run=True, photos=0, encoder_as="me/encoder")
    assert hub.requests == []
    assert result["url"] == ""
    assert set(result["files"]) == {"README.md", "config.json", "decoder.safetensors", "model.safetensors"}
    assert result["encoder"]["files"].keys() == {"README.md", "config.json", "model.safetensors"}
    words = " ".join(capsys.readouterr().out.split())
    assert "Would go to me/photos (private)" in words
    assert "together" in words


def test_a_repository_keeps_its_visibility(run, hub):
    hub.repositories |= {"me/open": Repository(private=False), "me/closed": Repository(private=True)}
    with pytest.raises(UserError, match="me/open exists and is public; add --public, or give another name"):
        iwm.push(run, "me/open", photos=0)
    with pytest.raises(UserError, match="me/closed exists and is private; leave out --public"):
        iwm.push(run, "me/closed", photos=0, public=True)
    assert iwm.push(run, "me/open", photos=0, public=True)["url"].startswith(hub.address)
    assert iwm.push(run, "me/closed", photos=0)["private"]
    iwm.push(run, "me/new", photos=0, public=True)
    assert [repository.private for repository in hub.repositories.values()] == [False, True, False]


def test_a_card_that_was_edited_on_the_hub_is_not_written_over(run, hub, monkeypatch):
    iwm.push(run, "me/photos", photos=0)
    iwm.push(run, "me/photos", photos=0)
    iwm.load(run).push_to_hub("me/photos")
    iwm.push(run, "me/photos", photos=0)
    photos = hub.repositories["me/photos"]
    photos.files["README.md"] += b"More of mine."
    photos.changes["README.md"] = "Update README.md"
    with monkeypatch.context() as nothing_computed:
        nothing_computed.setattr("iwm.exporting.push.prepare", None)
        for names in ({"repository": "me/photos"}, {"repository": "me/new", "encoder_as": "me/photos"}):
            with pytest.raises(
                UserError, match=r"card of me/photos is not as iwm wrote it .*'Update README.md'.* delete"
            ):
                iwm.push(run, **names, photos=0)
    assert photos.files["README.md"].endswith(b"More of mine.")
    assert "me/new" not in hub.repositories
    del photos.files["README.md"]
    iwm.push(run, "me/photos", photos=0)
    assert photos.changes["README.md"].startswith("Image world model, by iwm")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("photos", "'photos' names no repository of the hub; give user/name."),
        ("me/", "'me/' names no repository of the hub; give user/name."),
        ("me/a/b", "'me/a/b' names no repository of the hub; give user/name."),
        ("https://huggingface.co/me/a", "names no repository of the hub; give user/name."),
    ],
)
def test_a_name_without_user_is_one_sentence(run, hub, capsys, name, sentence):
    assert cli.main(["push", str(run), name]) == 2
    assert sentence in capsys.readouterr().err
    assert hub.requests == []


def test_both_cards_of_the_packages_model_name_its_licence():
    for given, licence in {"": "apache-2.0", "mit": "mit"}.items():
        options = Push(run="demo", repository="me/photos", encoder_as="me/encoder", license=given)
        assert f"license: {licence}\n" in push._encoder_card(options)
        assert licence_of("demo", given) == licence
    assert licence_of("runs/mine", "") == ""


def test_without_a_token_or_with_a_wrong_one_nothing_is_computed(run, hub, capsys, monkeypatch):
    monkeypatch.setattr("iwm.exporting.push.prepare", None)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong-and-secret")
    assert cli.main(["push", str(run), "me/photos"]) == 2
    words = capsys.readouterr().err
    assert words.startswith("The hub could not accept the token (Invalid")
    assert "secret" not in words
    assert words.count("\n") == 1
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main(["push", str(run), "me/photos"]) == 2
    assert capsys.readouterr().err == (
        "There is no token of the Hugging Face hub; run hf auth login, or set HF_TOKEN.\n"
    )


def test_a_model_in_python_goes_to_the_hub_and_back_by_its_mixin(run, hub, tmp_path):
    model = iwm.load(run)
    url = model.push_to_hub("me/by-hand")
    assert url.startswith(f"{hub.address}/me/by-hand/commit/")
    assert hub.repositories["me/by-hand"].private
    assert b'iwm.load("hf-hub:me/by-hand")' in hub.repositories["me/by-hand"].files["README.md"]
    back = iwm.load("hf-hub:me/by-hand")
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    assert back.decodes
    with pytest.raises(UserError, match=r"hf-hub:me/absent cannot be fetched \(.*\); give a run folder, or check"):
        iwm.load("hf-hub:me/absent")
    hub.repositories["me/empty"] = Repository(private=False, files={"README.md": b"nothing"})
    with pytest.raises(UserError, match=r"hf-hub:me/empty holds no model.safetensors and config.json; check the name"):
        iwm.load("hf-hub:me/empty")
