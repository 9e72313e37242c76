"""Scripts that complete verbs, options, their values and recipes in bash, zsh and fish; all from the verbs' fields.

The scripts hold every word, so that no Python starts while somebody types; make them anew after an update.
"""

from collections.abc import Callable, Iterator

from iwm import recipe_book, verbs
from iwm.runtime.console import tables_are_printed
from iwm.runtime.options import Option, options
from iwm.verbs import segment
from iwm.verbs.completion import Completion
from iwm.verbs.shared import WAYS, manners_of

TAKE_RECIPE = ("pretrain", "sweep", "recipes")
"""Verbs whose first word is a recipe."""
SAMPLES = ("sample", "sample-objects")
"""The sources in the package."""
CONDITIONINGS = ("none", "sequence", "feature", "adaln")
TRACKERS = ("mlflow", "tensorboard", "trackio", "wandb")
SUGGESTED: dict[str, tuple[str, ...]] = {
    "objective.kind": ("latent", "pixels", "joint"),
    "predictor.conditioning": CONDITIONINGS,
    "conditionings": CONDITIONINGS,
    "levels": ("jitter", "destructive", "strong"),
    "format": ("safetensors", "timm", "onnx", "torch", "hub"),
    "report_to": TRACKERS,
    "run.report_to": TRACKERS,
    "optim.kind": ("adamw", "muon"),
    "actions.set": ("photometric", "camera"),
    "encoder.train": ("all", "none", "last-1"),
    "speed.device": ("auto", "cpu", "cuda", "mps"),
    "kind": ("knn", "linear", "attentive", "instance"),
    "train": WAYS,
    "segment.train": segment.WAYS,
    "data": SAMPLES,
    "segment.data": ("sample-objects",),
    "data.source": SAMPLES,
}
"""Values of options that take others too: files, or names of a user's own; where a verb has some of its own, under
VERB.OPTION."""


def values_of(verb: verbs.Verb, option: Option) -> tuple[str, ...]:
    """The values to complete: all there are, or the built-in ones."""
    name = option.name.removeprefix("settings.")
    return option.choices or SUGGESTED.get(f"{verb.name}.{name}") or SUGGESTED.get(name, ())


def completion(o: Completion) -> str:
    """Print the script of a shell; returns it."""
    text = SCRIPTS[o.shell]()
    if tables_are_printed():
        print(text, end="")
    return text


def words_of(verb: verbs.Verb) -> list[Option]:
    """A verb's options and those of every verb, and `pretrain --config`, which is read before the others."""
    own = options(verb.options)
    taken = {flag for option in own for flag in option.flags}
    more = [option for option in options(manners_of(verb.plan)) if option.flags[0] not in taken]
    if verb.name == "pretrain":
        more.insert(0, Option("config", ("--config",), str, "", "All settings from a config.yaml."))
    return [*own, *more]


def placed_words(verb: verbs.Verb) -> tuple[str, ...]:
    """What may stand at a verb's first place, beside files; none where it is a file or a run."""
    if verb.name in TAKE_RECIPE:
        return tuple(recipe_book.RECIPES)
    first = next((option for option in options(verb.options) if option.placed), None)
    return first.choices if first else ()


def _named() -> Iterator[tuple[verbs.Verb, list[Option]]]:
    for name in verbs.names():
        verb = verbs.find(name)
        yield verb, [option for option in words_of(verb) if not option.placed]


# ---- bash ----------------------------------------------------------------------------------------------------------

BASH = """\
# Completion of iwm for bash: eval "$(iwm completion bash)"
_iwm() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} place=1 words= verb
    while [[ ${{COMP_WORDS[place]}} == -* ]] && (( place < COMP_CWORD )); do (( place++ )); done  # iwm --json VERB
    verb=${{COMP_WORDS[place]}}
    [[ $cur == = ]] && cur=
    [[ $prev == = ]] && prev=${{COMP_WORDS[COMP_CWORD-2]}}
    if (( COMP_CWORD == place )); then
        words="{verbs} --help --version"
    else
        case "$verb $prev" in
{values}
        esac
        if [[ -z $words && $cur == -* ]]; then
            case "$verb" in
{flags}
            esac
        elif [[ -z $words ]] && (( COMP_CWORD == place + 1 )); then
            case "$verb" in
{placed}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))  # of none, -o default completes files
}}
complete -o default -F _iwm iwm
"""


def bash() -> str:
    """The script for bash; where it has no word, bash completes files."""
    values, flags, placed = [], [], []
    for verb, named in _named():
        for option in named:
            if known := values_of(verb, option):
                pattern = " | ".join(f'"{verb.name} {flag}"' for flag in option.flags)
                values.append(f'            {pattern}) words="{" ".join(known)}" ;;')
        every = " ".join(flag for option in named for flag in option.flags)
        flags.append(f'                {verb.name}) words="{every} --help" ;;')
        if placed_words(verb):
            placed.append(f'                {verb.name}) words="{" ".join(placed_words(verb))}" ;;')
    parts = {"values": values, "flags": flags, "placed": placed}
    lines = {name: "\n".join(part) for name, part in parts.items()}
    return BASH.format(verbs=" ".join(verbs.names()), **lines)


# ---- zsh -----------------------------------------------------------------------------------------------------------

ZSH = """\
#compdef iwm
# Completion of iwm for zsh: a file _iwm in a folder of $fpath, or eval "$(iwm completion zsh)" after compinit
_iwm() {{
    local -a verbs
    verbs=(
{verbs}
    )
    while [[ $words[2] == -* ]] && (( CURRENT > 2 )); do shift words; (( CURRENT-- )); done  # iwm --json VERB
    if (( CURRENT == 2 )); then
        _describe verb verbs
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
{cases}
    esac
}}
if [[ $funcstack[1] == _iwm ]]; then _iwm "$@"; else compdef _iwm iwm; fi
"""


def zsh() -> str:
    """The script for zsh, with a sentence beside every option."""
    verb_lines = [f"        {_zsh_quoted(f'{name}:{verbs.find(name).sentence}')}" for name in verbs.names()]
    cases = []
    for verb, named in _named():
        specs = []
        for option in named:
            sentence = _plain(option.sentence)
            value = "" if option.switch else _zsh_values(verb, option)
            specs += [f"            {_zsh_quoted(f'{flag}[{sentence}]{value}')}" for flag in option.flags]
        first = f"({' '.join(placed_words(verb))})" if placed_words(verb) else "_files"
        specs.append(f"            {_zsh_quoted(f'1:argument:{first}')}")
        specs.append(f"            {_zsh_quoted('*:argument:_files')}")
        joined = " \\\n".join(specs)
        cases.append(f"    {verb.name})\n        _arguments \\\n{joined}\n        ;;")
    return ZSH.format(verbs="\n".join(verb_lines), cases="\n".join(cases))


def _zsh_values(verb: verbs.Verb, option: Option) -> str:
    """What may follow an option: its values, those and files where it takes others too, or files."""
    words = " ".join(values_of(verb, option))
    if option.choices:
        return f":value:({words})"
    return f":value:{{compadd {words}; _files}}" if words else ":value:_files"


def _plain(sentence: str) -> str:
    """A sentence without what zsh reads as a mark."""
    return sentence.translate(str.maketrans({"[": "(", "]": ")", ":": ";"}))


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish ----------------------------------------------------------------------------------------------------------


def fish() -> str:
    """The script for fish, with a sentence beside every verb and option."""
    lines = ["# Completion of iwm for fish: iwm completion fish > ~/.config/fish/completions/iwm.fish"]
    first = "__fish_is_nth_token 1"
    for name in verbs.names():
        lines.append(f"complete -c iwm -n '{first}' -f -a {name} -d {_fish_quoted(verbs.find(name).sentence)}")
    lines.append(f"complete -c iwm -n '{first}' -f -l version -d 'Which versions run'")
    for verb, named in _named():
        of_verb = f"__fish_seen_subcommand_from {verb.name}"
        if placed_words(verb):
            second = f"{of_verb}; and __fish_is_nth_token 2"
            lines.append(f"complete -c iwm -n '{second}' -f -a '{' '.join(placed_words(verb))}'")
        for option in named:
            known = values_of(verb, option)
            words = f" -a '{' '.join(known)}'" if known else ""
            value = "" if option.switch else f" {'-x' if option.choices else '-r'}{words}"
            for flag in option.flags:
                sentence = _fish_quoted(option.sentence)
                lines.append(f"complete -c iwm -n '{of_verb}' -l {flag.removeprefix('--')}{value} -d {sentence}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""The script of every shell."""
