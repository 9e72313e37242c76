"""tyro's complaints as one sentence each, with the nearest option."""

import pytest

from iwm import verbs
from iwm.cli.sentences import out_of_memory, parse, sentence
from iwm.runtime.errors import UserError
from iwm.runtime.options import options

BOX = """\x1b[31m╭─ Parsing error ──────────────╮
│ Unrecognized options: --hlep │
│ ──────────────────────────── │
│ Perhaps you meant:           │
│     --help                   │
╰──────────────────────────────╯\x1b[0m
"""


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["runs/mine", "--data", "x", "--imags=3"], "Unrecognized options: --imags=3; did you mean --images?"),
        (["runs/mine", "--data", "x", "--bank", "many"], "--bank is 'many'; give a whole number."),
        (["runs/mine", "--data", "x", "--bank", "2.5"], "--bank is '2.5'; give a whole number."),
        (["runs/mine", "--data"], "Missing value for argument '--data"),
        (["runs/mine"], "see iwm world --help."),
        ([], "see iwm world --help."),
    ],
)
def test_a_complaint_is_one_line_that_says_what_to_do(words, complaint):
    verb = verbs.find("world")
    with pytest.raises(UserError) as refused:
        parse(verb.options, words, verb)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "│" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--optim.lr", "fast"], "--optim.lr is 'fast'; give a number."),
        (["--optim.steps", "2.5"], "--optim.steps is '2.5'; give a whole number."),
        (["--data.crop-area", "a", "b"], "--data.crop-area is 'a b'; give numbers."),
        (["--optim.schedule", "linear"], "--optim.schedule is 'linear'; give constant or cosine."),
        (["--speed.compile", "maybe"], "--speed.compile is 'maybe'; give False, None or True."),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_does(words, complaint):
    verb = verbs.find("pretrain")
    with pytest.raises(UserError) as refused:
        parse(verb.options, ["demo", *words], verb)
    assert str(refused.value) == complaint


def test_a_choice_of_types_is_named_without_what_each_of_them_says():
    verb = verbs.find("probe")
    with pytest.raises(UserError) as refused:
        parse(verb.options, ["runs/mine", "--data", "x", "--layers", "two"], verb)
    assert "--layers: no type matching INT|{all} could be instantiated from ['two']; see iwm" in str(refused.value)
    assert parse(verb.options, ["runs/mine", "--data", "x", "--layers", "all"], verb).layers == "all"
    assert parse(verb.options, ["runs/mine", "--data", "x", "--layers", "4"], verb).layers == 4


def test_boxes_and_colours_are_taken_off():
    assert sentence(BOX, "world") == "Unrecognized options: --hlep; did you mean --help?"


def test_a_box_without_words_still_says_what_to_do():
    assert sentence("", "world") == "The options could not be read; see iwm world --help."


def test_help_is_tyros_page_with_the_verbs_sentence(capsys):
    verb = verbs.find("world")
    with pytest.raises(SystemExit) as ended:
        parse(verb.options, ["--help", "--nonsense"], verb)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: iwm world")
    assert verb.sentence in printed
    assert "--bank" in printed


def test_help_breaks_the_text_of_an_option_only_where_a_line_is_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    verb = verbs.find("finetune")
    with pytest.raises(SystemExit):
        parse(verb.options, ["--help"], verb)
    lines = capsys.readouterr().out.splitlines()
    options_of_verb = options(verb.options)
    assert any(option.name.startswith("speed.") for option in options_of_verb)
    for option in options_of_verb:
        assert any(option.sentence in line for line in lines), option.name


@pytest.mark.parametrize(
    ("verb", "mend"),
    [
        ("pretrain", "lower optim.batch_size, or keep it and raise optim.accumulate, so that each part is smaller."),
        ("sweep", "lower optim.batch_size, or keep it and raise optim.accumulate, so that each part is smaller."),
        ("finetune", "lower --batch-size or --size."),
        ("segment", "lower --batch-size or --size."),
        ("probe", "lower --size."),  # its batch size cannot be typed
        ("world", "lower --bank or --images."),
        ("imagine", "lower --bank."),
        ("look", "lower --images."),
        ("predict", "end other programs, or take a machine with more memory."),
    ],
)
def test_out_of_memory_names_options_that_the_verb_has(verb, mend):
    assert out_of_memory(verbs.find(verb)) == f"Out of memory: {mend}"
