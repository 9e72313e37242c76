"""Threads that wait do not spin for long: set before PyTorch reads it, and only where the user has not."""

import os
import subprocess
import sys

import pytest

MAIN = """
import os, sys
from iwm.cli import main
main(["--version"])
print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("environment", "value"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=str,
)
def test_the_command_line_limits_spinning_where_the_user_has_not(environment, value):
    unset = {name: text for name, text in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    output = subprocess.run(
        [sys.executable, "-c", MAIN], env=unset | environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines()[-1] == f"False {value}"
