"""The exceptions a user is meant to read: a sentence each."""

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2, without a traceback."""


class Busy(UserError):
    """Another process is at work there."""


class Interrupted(Exception):
    """Ctrl-C: the run was saved; the sentence says how to go on."""

    code = 130
    """Exit code of the command."""


class Preempted(Interrupted):
    """The same of SIGTERM and SIGUSR1, by which schedulers ask: EX_TEMPFAIL, the same command will go on."""

    code = 75


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: the nearest known word, "did you mean 'X'?", or the list of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}."


def first_line(error: BaseException) -> str:
    """What an error says, without the lines behind the first and the full stop; of one that says nothing its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was lacking, of the machine or of the GPU."""
    if isinstance(error, RuntimeError):
        return re.search("out of memory|can't allocate memory", str(error)) is not None
    return isinstance(error, MemoryError)
