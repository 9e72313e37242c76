"""Print a script that completes verbs, options, their values and recipes in a shell."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Completion:
    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="bash|zsh|fish")]
    """The shell that reads the script; docs/commands.md says where it belongs."""


OPTIONS = Completion
WORK = "iwm.cli.completion:completion"
EXAMPLE = 'eval "$(iwm completion bash)"'
