"""The `iwm` command: one dispatch over the verbs, and one table of exits.

Bad input is one sentence and exit code 2; Ctrl-C during training or a sweep saves first and exits with 130, SIGTERM
and SIGUSR1 likewise with 75. Of several ranks one says so.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from iwm import config, verbs
from iwm.cli import help, manners, sentences, version
from iwm.cli.sentences import parse
from iwm.runtime import launch, renames
from iwm.runtime.errors import Interrupted, UserError, is_out_of_memory
from iwm.runtime.openmp import limit_spinning


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `iwm` command; returns the exit code."""
    limit_spinning()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8; standard error does so by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        argv = manners.verb_first(argv)
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Interrupted as saved:
        if launch.place().rank == 0:
            print(saved, file=sys.stderr)
        return saved.code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `iwm sweep --help | head -3`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the rest flushed to nobody at exit
        return 141
    except OSError as error:
        name, reason = error.filename or "A file", error.strerror or error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some, then give the same command again: a run goes on from its last checkpoint"
            print(f"There is no space left for {name} ({reason}); {mend}.", file=sys.stderr)
        else:
            print(f"{name} cannot be used ({reason}); check path and space.", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(sentences.out_of_memory(verbs.find(argv[0]) if argv else None), file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    """Read the verb's options and do its work; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(help.overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(version.text())
        return 0
    _, own_code = _without_own_code(words[1:])
    for text in own_code:  # first, for it may register the verb
        _import_set(text)
    verb = verbs.find(words[0])
    rest, how = manners.take(words[1:], verb)
    rest = renames.in_words(rest, config.RENAMED)
    options = _read(verb, rest)
    _, own_set = verbs.without_option(rest, "--actions.set")
    if ":" in own_set:  # typed here and now; a file that a configuration names is not run
        _import_set(own_set)
    return manners.perform(verb, options, how)


def _read(verb: verbs.Verb, words: Sequence[str]) -> Any:
    """The verb's options. A verb with a `read` gets all words; those of `--actions` are no options of any verb."""

    def of_verb(kind: type, words: Sequence[str], default: Any = None) -> Any:
        return parse(kind, _without_own_code(words)[0], verb, default)

    return verb.read(words, of_verb) if verb.read else of_verb(verb.options, words)


def _without_own_code(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without any `--actions PATH.py:NAME`, and those files."""
    rest, texts = list(words), []
    while any(word.split("=")[0] == "--actions" for word in rest):
        at = max(place for place, word in enumerate(rest) if word.split("=")[0] == "--actions")
        last, text = verbs.without_option(rest[at:], "--actions")
        rest, texts = rest[:at] + last, [*texts, text]
    return rest, texts


def _import_set(text: str) -> None:
    from iwm.actions import action_sets

    action_sets.import_set(text)
