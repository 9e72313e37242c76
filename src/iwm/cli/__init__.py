"""The command line."""

from iwm.cli.dispatch import main

__all__ = ["main"]
