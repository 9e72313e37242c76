"""`iwm app` as it is started: a sentence for what cannot be served, and no word to any other machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from planted_page import tiny_world

from iwm import cli
from iwm.model import weights
from iwm.page import server
from iwm.page.server import app
from iwm.runtime.errors import UserError
from iwm.verbs.app import App

WATCHED = """
import sys
calls = []
def watch(event, values):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        calls.append((event, values))
        place = values[1] if event in ("socket.connect", "socket.sendto") else values[0]
        host = place[0] if isinstance(place, tuple) else place
        if host not in ("127.0.0.1", None):
            print(f"TO THE OUTSIDE: {event} {host}", file=sys.stderr, flush=True)
sys.addaudithook(watch)
from iwm import cli
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command line, in which every connection to another machine is named."""


@pytest.fixture
def run(tmp_path: Path) -> str:
    weights.export(tiny_world(), tmp_path / "run")
    return str(tmp_path / "run")


def test_it_serves_until_it_is_stopped_and_asks_no_other_machine(run: str, pictures: str) -> None:
    pytest.importorskip("starlette", reason="the extra iwm[app] is not installed")
    command = [sys.executable, "-c", WATCHED, "app", run, "--data", pictures, "--port", "0", "--bank", "16"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    words = process.stdout.readline()
    assert "http://127.0.0.1:" in words, process.communicate(timeout=60)
    address = next(word for word in words.split() if word.startswith("http"))
    for path, body in (("world", None), ("imagine", b'{"image": "f0"}'), ("infer", b'{"source":"f0","target":"f1"}')):
        with urllib.request.urlopen(f"{address}/api/{path}", body, timeout=60) as answer:
            assert json.load(answer)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert complaints.strip() in ("", "Stopped."), "no traceback, nobody else was asked"


def test_a_port_that_is_taken_is_said_so(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("starlette", reason="the extra iwm[app] is not installed")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert cli.main(["app", run, "--port", str(port)]) == 2
    assert f"Nothing can listen at 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": "nowhere", "port": 0}, "no run at nowhere"),
        ({"data": "no-folder", "port": 0}, "no-folder"),
        ({"port": 99999}, "give at most 65535"),
        ({"host": "no.such.host.invalid", "port": 0}, "another --port or --host"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    run: str, options: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="the extra iwm[app] is not installed")
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: pytest.fail("it is served"))
    with pytest.raises(UserError, match=words):
        app(App(**{"run": run, **options}))  # pyright: ignore[reportArgumentType]


def test_without_the_extra_it_says_what_to_install(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(UserError, match=r"needs uvicorn; install: pip install uvicorn"):
        app(App(run=run))


def test_other_machines_are_let_in_only_when_asked_and_with_a_warning(
    run: str, pictures: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="the extra iwm[app] is not installed")
    places = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: places.append(sockets[0].getsockname()[0]))
    app(App(run=run, data=pictures, port=0))
    assert "no password" not in capsys.readouterr().err
    app(App(run=run, data=pictures, port=0, host="0.0.0.0"))
    assert "there is no password" in " ".join(capsys.readouterr().err.split())
    assert places == ["127.0.0.1", "0.0.0.0"]
