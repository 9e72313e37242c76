"""The page over HTTP: every answer, every refusal in one sentence, and nobody else may ask."""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from test_pictures import file

from benchmarks import page as benchmark


def ask(
    address: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("POST" if body is not None else "GET", path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def question(address: str, name: str, **content: Any) -> tuple[int, dict[str, Any]]:
    status, _, body = ask(address, f"/api/{name}", json.dumps(content).encode())
    return status, json.loads(body)


@pytest.mark.parametrize("path", ["/", "/app.js", "/style.css", "/api/world", "/api/pictures/f0.png", "/nothing"])
def test_the_browser_is_forbidden_to_load_anything_from_elsewhere(page_address: str, path: str) -> None:
    status, headers, body = ask(page_address, path)
    assert status == (404 if path == "/nothing" else 200)
    assert body
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {word for value in policy.values() for word in value.split()} <= {"'none'", "'self'", "data:", "blob:"}
    assert headers["x-content-type-options"] == "nosniff"


def test_the_files_name_no_other_place() -> None:
    static = Path(benchmark.__file__).parent.parent / "src" / "iwm" / "page" / "static"
    for path in static.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert "//" not in text.replace("// ", ""), path.name


def test_upload_imagine_find_and_search(page_address: str) -> None:
    status, _, body = ask(page_address, "/api/images", file("JPEG"), {"X-File-Name": "my%20photo.jpg"})
    uploaded = json.loads(body)
    assert (status, uploaded["name"]) == (200, "my photo.jpg")
    status, answer = question(page_address, "imagine", image=uploaded["key"], action={"hue": 0.1})
    assert (status, answer["words"]) == (200, "hue +0.10")
    status, changed = question(page_address, "changed", image=uploaded["key"], action={"brightness": 0.2})
    assert status == 200
    status, found = question(page_address, "infer", source=uploaded["key"], target=changed["key"])
    assert (status, found["rows"][0]["truth"]) == (200, 0.2)
    status, hits = question(page_address, "search", image=uploaded["key"], action={"brightness": -0.4})
    assert (status, len(hits["nearest"])) == (200, 8)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/imagine", b"[1]", 400, "no JSON object"),
        ("/api/imagine", b"\xff{", 400, "no JSON object"),
        ("/api/imagine", b"[" * 10_000, 400, "no JSON object"),
        ("/api/imagine", b'{"image": "f0", "action": {"hue": 1e999}}', 400, "finite number"),
        ("/api/imagine", b'{"image": "f0", "action": {"hue": 3}}', 400, "outside -0.1 to 0.1"),
        ("/api/imagine", b'{"image": "u1"}', 404, "choose it again"),
        ("/api/search", b"x" * 20_000, 413, "at most 16384 bytes"),
        ("/api/images", b"GIF89a", 400, "choose"),
        ("/api/images", bytes(1_000_001), 413, "larger than 1 MB"),
        ("/api/pictures/f99999.png", None, 404, "choose it again"),
        ("/api/pictures/..%2f..%2fetc.png", None, 404, ""),
        ("/api/images", None, 405, "Method Not Allowed"),
    ],
)
def test_a_refusal_is_one_sentence(page_address: str, path: str, body: bytes | None, status: int, words: str) -> None:
    answer, _, content = ask(page_address, path, body)
    assert answer == status
    sentence = json.loads(content)["error"]
    assert words in sentence
    assert sentence.endswith(".")


def test_a_body_that_hides_its_length_is_cut_off_at_the_limit(page_address: str) -> None:
    place = urlsplit(page_address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        head = f"POST /api/images HTTP/1.1\r\nHost: {place.netloc}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"%x\r\n" % 400_000 + bytes(400_000) + b"\r\n"
        for _ in range(3):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(100)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:7860", "Origin": "http://evil.example:7860"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
    ids=["rebinding", "rebinding with origin", "another site", "a sandbox"],
)
def test_another_sites_page_may_not_ask(page_address: str, headers: dict[str, str]) -> None:
    status, answer, body = ask(page_address, "/api/imagine", b'{"image": "f0"}', headers)
    assert status == 403
    assert "open" in json.loads(body)["error"]
    assert "access-control-allow-origin" not in answer


def test_the_page_itself_may(page_address: str) -> None:
    assert ask(page_address, "/api/imagine", b'{"image": "f0"}', {"Origin": page_address})[0] == 200


def test_clients_at_once_get_their_answers(page_address: str) -> None:
    """benchmarks/page.py in short."""
    numbers = benchmark.load(benchmark.Server(page_address, os.getpid()), clients=4, requests=5, start=0)
    assert (numbers["answers"], numbers["errors"]) == (20, 0)
