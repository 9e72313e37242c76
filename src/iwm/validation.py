"""Which numbers make no sense and which settings do not go together, said before anything is done."""

from iwm.config import Config, flatten, to_dict
from iwm.runtime.errors import UserError

AT_LEAST = {
    "data.image_size": 1,
    "actions.brightness": 0,
    "actions.contrast": 0,
    "actions.saturation": 0,
    "actions.hue": 0,
    "masks.blocks": 1,
    "encoder.patch_size": 1,
    "encoder.width": 4,
    "encoder.depth": 1,
    "encoder.heads": 1,
    "encoder.mlp_ratio": 0.1,
    "predictor.depth": 1,
    "predictor.width": 4,
    "predictor.mlp_ratio": 0.1,
    "objective.variance": 0,
    "objective.covariance": 0,
    "objective.target_layers": 1,
    "objective.projector_width": 1,
    "objective.projector_dim": 2,
    "optim.epochs": 1,
    "optim.batch_size": 1,
    "optim.accumulate": 1,
    "optim.lr": 0,
    "optim.lr_batch": 1,
    "optim.lr_start": 0,
    "optim.lr_final": 0,
    "optim.warmup_epochs": 0,
    "optim.weight_decay": 0,
    "optim.weight_decay_final": 0,
    "optim.stretch": 1,
    "optim.clip": 0,
    "speed.threads": 0,
    "speed.workers": -1,
    "run.log_every": 1,
    "run.probe_every": 1,
    "run.save_every": 1,
    "run.keep": 1,
}
FRACTIONS = (
    *("data.flip", "actions.jitter_probability", "actions.grayscale", "actions.blur", "actions.solarize"),
    *("masks.ratio", "masks.whole", "views.blur", "views.solarize"),
    *("optim.ema", "optim.ema_final"),
)
RANGES = ("data.crop_area", "masks.block_area", "masks.block_aspect", "actions.blur_sigma")


def validate(config: Config) -> None:
    """Check that numbers make sense before anything is done. Raises UserError naming the first that does not."""
    values = flatten(to_dict(config))
    for name, least in AT_LEAST.items():
        if not values[name] >= least:  # "not >=" also catches nan
            raise UserError(f"{name} is {values[name]}; give {least} or more.")
    for name in FRACTIONS:
        given = values[name] if isinstance(values[name], list) else [values[name]]
        if not all(0 <= value <= 1 for value in given):
            wanted = "a number" if len(given) == 1 else "numbers"
            raise UserError(f"{name} is {' '.join(map(str, given))}; give {wanted} from 0 to 1.")
    for name in RANGES:
        low, high = values[name] or (1, 1)
        if not 0 < low <= high:
            raise UserError(f"{name} is {low} to {high}; give two positive numbers, the smaller one first.")
        if name.endswith("area") and high > 1:
            raise UserError(f"{name} reaches {high}; an area is a fraction of the image, at most 1.")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(f"optim.betas are {config.optim.betas}; give numbers from 0 to below 1.")
    _validate_objective(config)


def _validate_objective(config: Config) -> None:
    """What the kinds of objective do not go together with, so that no setting is passed over in silence."""
    s, kind = config.objective, config.objective.kind
    if kind != "joint" and config.views.geometry == "independent":
        raise UserError(
            f"views.geometry independent leaves objective.kind {kind} without patches that correspond; give "
            "views.geometry shared, or objective.kind joint."
        )
    if kind != "latent" and s.target_layers != 1:
        raise UserError(f"objective.target_layers averages latent targets, objective.kind {kind} has none; give 1.")
    if kind != "joint" and config.masks.sampler == "none" and config.masks.predict == "dropped":
        raise UserError("masks.sampler none drops no patch to predict; give masks.predict all, or another sampler.")
    if kind != "joint":
        return
    if s.variance or s.covariance:
        raise UserError("objective.variance and objective.covariance are no part of objective.kind joint; give 0.")
    if config.masks.sampler != "none":
        raise UserError("objective.kind joint masks nothing; give masks.sampler none.")
    if not s.temperature > 0:
        raise UserError(f"objective.temperature is {s.temperature}; give a number above 0.")
    if config.optim.batch_size < 2 * config.optim.accumulate:
        raise UserError(
            "objective.kind joint compares images with one another: optim.batch_size must be at least twice "
            "optim.accumulate."
        )
