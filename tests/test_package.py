"""What the package is released by: lower bounds, workflow, container and checks name what there is."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_has_a_lowest_version():
    tool = runpy.run_path(str(ROOT / "tools" / "lowest_versions.py"))
    pins = tool["constraints"]()
    assert "torch==2.11" in pins
    extras = [one for name in ("app", "onnx", "embed", "track") for one in PROJECT["optional-dependencies"][name]]
    names = {re.split(r"[=<>\[]", one)[0] for one in [*PROJECT["dependencies"], *extras]}
    assert {pin.split("==")[0] for pin in pins} == names
    assert tool["lowest"](["a[b]>=1.2,<3"]) == ["a==1.2"]
    with pytest.raises(ValueError, match="numpy has no lower bound"):
        tool["lowest"](["numpy"])


def test_tested_versions_are_within_the_bounds():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {name.lower().replace("-", "_"): version for name, version in pins.items()}

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text))

    for requirement in PROJECT["dependencies"]:
        bounds = re.match(r"([\w.-]+)>=([\d.]+)", requirement)
        assert bounds, requirement
        name, lowest = bounds.groups()
        upper = re.search(r"<([\d.]+)", requirement)
        version = pins[name.lower().replace("-", "_")]
        assert numbers(version) >= numbers(lowest), requirement
        assert not upper or numbers(version) < numbers(upper[1]), requirement


def test_a_release_is_built_checked_published_without_a_secret_and_attached():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs: dict[str, Any] = yaml.safe_load(text)["jobs"]
    assert (jobs["publish"]["needs"], jobs["attach"]["needs"]) == ("build", "publish")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
    commands = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    for name in re.findall(r"[\w.]*(?:tools|\.ci)/[\w.]+", commands):
        assert (ROOT / name).exists(), name
    assert "tools/check_package.py --install" in commands
    for place in re.findall(r"uses: (.*)", text):  # a tag can be moved
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", place), place
    uploads = [step["with"]["name"] for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", "")]
    for job in ("publish", "attach"):
        downloads = [step["with"] for step in jobs[job]["steps"] if "download-artifact" in step.get("uses", "")]
        assert [(one["name"], one["path"]) for one in downloads] == [(uploads[0], "dist/")]


def test_what_a_release_runs_is_in_the_makefile():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    steps = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"lint", "package", "docs", "test"} <= set(steps) <= set(targets)


def test_the_container_copies_what_there_is_and_runs_as_no_root():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name
        assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001"]
    assert lines.index("USER 10001") < lines.index('ENTRYPOINT ["iwm"]')


def test_the_check_of_the_package_is_part_of_ci():
    assert "make package\n" in (ROOT / ".ci" / "run").read_text()
    assert "tools/check_package.py\n" in (ROOT / "Makefile").read_text()


def test_what_does_not_fit_under_the_limit_is_not_released():
    tool = runpy.run_path(str(ROOT / "tools" / "check_package.py"))
    assert tool["MOST"] == 14_000_000
    largest = sum(path.stat().st_size for path in (ROOT / "src" / "iwm").rglob("*") if "__pycache__" not in path.parts)
    assert largest < 1.5 * tool["MOST"], "the wheel, which is compressed, will hardly be under the limit"
