"""What is said of a training before it begins, or of its dry run: settings that do nothing or not what one expects, and
images that cannot be measured on afterwards."""

from dataclasses import replace

from iwm import config
from iwm.data.image_sets import ImageSet
from iwm.data.splits import changed_since, records_by_source, training_record
from iwm.model.architecture import layer_number
from iwm.model.cost import cost
from iwm.run_folder import trainings_before
from iwm.training.schedule import Schedule
from iwm.training.validation import without_effect


def before(settings: config.Config, source: ImageSet, schedule: Schedule) -> list[str]:
    """Sentences on settings that are valid (`validation.validate`), a source opened for training and their schedule."""
    return [
        *_on_blocks(settings),
        *without_effect(settings),
        *_on_warmup(settings, schedule),
        *_on_init(settings, source),
    ]


def _on_blocks(settings: config.Config) -> list[str]:
    """What happens behind the block that is predicted, and what the invariance term costs; nothing by default."""
    encoder, weight = settings.encoder, settings.objective.invariance_weight
    layer = layer_number(encoder.layer, encoder.depth)
    if weight:
        without = replace(settings, objective=replace(settings.objective, invariance_weight=0.0))
        ratio = cost(settings).train_flops / cost(without).train_flops
        return [
            f"Block {layer} of {encoder.depth} is predicted, the last one made invariant (weight {weight:g}): "
            f"{ratio:.1f} times the operations of a step without."
        ]
    if layer < encoder.depth and not encoder.name:
        first, last = layer + 1, encoder.depth
        blocks = f"Block {last} stays" if first == last else f"Blocks {first} to {last} stay"
        return [f"{blocks} as drawn: nothing is asked there without objective.invariance_weight."]
    return []


def _on_warmup(settings: config.Config, schedule: Schedule) -> list[str]:
    """That the learning rate never reaches its peak."""
    if schedule.warmup < schedule.steps:
        return []
    return [
        f"The learning rate still rises when training ends (optim.warmup_epochs {settings.optim.warmup_epochs:g} "
        f"are {schedule.warmup:,.0f} steps); lower optim.warmup_epochs, or train longer."
    ]


def _on_init(settings: config.Config, source: ImageSet) -> list[str]:
    """That the run that this one begins with was trained on what is held out now: whatever measures them refuses it."""
    then = trainings_before(settings.init)
    if not then:  # a record is a digest of all names
        return []
    now = records_by_source(settings.data.source, training_record(source))
    changes = {changed for name, record in now for each in then if (changed := changed_since(each, name, record))}
    return [
        f"{changed}, so most of the tenth that is held out now was trained on and no command will measure this run on "
        "it; put images that were never trained on into a val/ in it, or name some with --val then."
        for changed in sorted(changes)
    ]
