"""`iwm --help`: the verbs by what one wants to do, each with an example, and what all of them take."""

from iwm import verbs
from iwm.runtime.options import options
from iwm.verbs.shared import Manners

EXITS = {
    0: "done; of `iwm doctor`: the run is healthy",
    1: "`iwm doctor`: the run is ill; of several processes: one was lost; an error of the program",
    2: "a complaint about what was given, one sentence on standard error",
    75: "a training or a sweep stopped by SIGTERM or SIGUSR1, saved: give the same command again",
    130: "stopped by Ctrl-C; a training or a sweep is saved: give the same command again",
    141: "what read the output stopped reading",
}
"""Every exit code with its meaning; docs/commands.md shows the same table."""


def overview() -> str:
    """The text of `iwm --help`."""
    lines = ["usage: iwm VERB ...", ""]
    groups = {group: [name for name in names if name in verbs.names()] for group, names in verbs.GROUPS.items()}
    groups["Others"] = [name for name in verbs.names() if not any(name in names for names in groups.values())]
    for group, names in groups.items():
        if names:
            lines.append(group)
        for name in names:
            verb = verbs.find(name)
            lines.append(f"  {name:<11} {verb.sentence}")
            lines += [f"  {'':<11}   $ {verb.example}"] if verb.example else []
    lines += ["", "Every verb takes"]
    lines += [f"  {option.flags[0]:<11} {option.sentence}" for option in options(Manners)]
    codes = "; ".join(f"{code}: {meaning}" for code, meaning in EXITS.items() if code in (0, 1, 2))
    lines += ["", "`iwm VERB --help` lists a verb's options, `iwm --version` says which versions run."]
    lines += [f"Exit codes, {codes} (all: docs/commands.md)."]
    return "\n".join(lines)
