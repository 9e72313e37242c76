"""Write the Jupyter form of each marimo notebook in examples/: python tools/export_notebooks.py."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"


def exported(notebook: Path) -> str:
    """The .ipynb of a marimo notebook, without the cell that imports marimo, which only its Markdown needs."""
    command = [sys.executable, "-m", "marimo", "export", "ipynb", str(notebook), "--sort", "top-down"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    content: dict[str, Any] = json.loads(text)
    content["cells"] = [cell for cell in content["cells"] if "".join(cell["source"]) != "import marimo as mo"]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for notebook in sorted(EXAMPLES.glob("*.py")):
        notebook.with_suffix(".ipynb").write_text(exported(notebook))
