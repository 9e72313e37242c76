"""Several processes at once: refused, until they are built."""

import os

from iwm.runtime.errors import UserError


def require_one_process() -> None:
    """Raises UserError under torchrun with several processes, which would all write the same run."""
    size = os.environ.get("WORLD_SIZE", "1").strip()
    if size not in ("", "0", "1"):
        raise UserError(
            f"iwm runs as one process so far, and WORLD_SIZE is {size}: every process would write the same files; "
            "start it without torchrun, or unset WORLD_SIZE."
        )
