import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from iwm import config, recipe_book
from iwm.runtime import settings_file
from iwm.runtime.errors import UserError
from iwm.runtime.fields import to_dict


@pytest.mark.parametrize("name", recipe_book.RECIPES)
def test_yaml_round_trip(name, tmp_path):
    settings = replace(recipe_book.get(name), actions=config.Actions(blur_sigma=(0.3, 1.5)))
    config.save(settings, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == settings


def test_a_file_of_a_few_settings_is_refused(tmp_path):
    """Its recipe would be a name only, and all else the paper's."""
    path = tmp_path / "config.yaml"
    path.write_text("recipe: demo\noptim: {epochs: 3}\n")
    with pytest.raises(
        UserError, match=r"lacks \d+ settings that the config\.yaml of a run has, .*iwm pretrain RECIPE"
    ):
        config.load(path)
    values = to_dict(recipe_book.get("demo"))
    del values["run"]["report_to"]  # as of a run that is older than this setting
    settings_file.write(values, path)
    assert config.load(path) == recipe_book.get("demo")


def test_a_crash_while_saving_leaves_the_old_settings(tmp_path, monkeypatch):
    """A run whose config.yaml is torn can be neither resumed nor shown."""

    def torn(path: Path, text: str, **_: str) -> None:
        path.write_bytes(text[:20].encode())
        raise OSError("No space left on device")

    settings = recipe_book.get("demo")
    config.save(settings, tmp_path / "config.yaml")
    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(OSError, match="No space left"):
        config.save(recipe_book.get("cifar10"), tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == settings
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_papers_recipe_is_untouched():
    """Design section 3: the values the paper's reproduction stands on."""
    s = recipe_book.get("imagenet-vitb16-equi")
    assert (s.encoder.width, s.encoder.depth, s.encoder.heads, s.encoder.patch_size) == (768, 12, 12, 16)
    assert (s.predictor.depth, s.predictor.width, s.predictor.conditioning) == (18, 384, "feature")
    assert (s.masks.blocks, s.masks.block_area, s.masks.predict) == (4, (0.15, 0.2), "dropped")
    assert s.objective == config.Objective(target_norm="token", target_layers=1)
    assert (s.optim.epochs, s.optim.batch_size, s.optim.lr, s.optim.ema, s.optim.stretch) == (
        300,
        2048,
        1e-3,
        0.996,
        1.25,
    )
    assert s.optim.kind == "adamw"
    assert s.actions == config.Actions()
    assert recipe_book.get("imagenet-vitb16-inv").predictor.depth == 12
    assert (recipe_book.get("imagenet-vitl16").predictor.depth, recipe_book.get("imagenet-vitl16").predictor.width) == (
        36,
        512,
    )


def test_no_setting_may_be_nan_or_infinite():
    """Training would find no step finite, and stop as diverged."""
    whole, seen = config.Config(), []
    for group in (field.name for field in fields(whole) if is_dataclass(getattr(whole, field.name))):
        settings = getattr(whole, group)
        for name in (field.name for field in fields(settings)):
            numbers = value if isinstance(value := getattr(settings, name), tuple) else (value,)
            if not isinstance(numbers[0], float):
                continue
            for wrong in (math.nan, math.inf):
                given = (*numbers[1:], wrong) if isinstance(value, tuple) else wrong
                with pytest.raises(UserError, match=rf"^{group}\.{name} is .*{wrong}.* give"):
                    config.check_bounds(replace(whole, **{group: replace(settings, **{name: given})}))
            seen.append(f"{group}.{name}")
    assert {"encoder.mean", "objective.temperature", "optim.lr", "optim.ema", "views.blur"} <= set(seen)


def test_an_unknown_recipe_is_named_with_its_neighbour():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        recipe_book.get("cifar")


def test_families_are_transformations_of_the_sizes():
    assert recipe_book.get("mae-imagenet-vitb16").optim.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert recipe_book.get("mae-imagenet-vitb16").predictor.depth == 8
    assert recipe_book.get("moco-imagenet-vitb16").optim.epochs == 300
    for family in recipe_book.FAMILIES:
        size, own = recipe_book.get("cifar10"), recipe_book.get(f"{family}-cifar10")
        assert (own.data.image_size, own.optim.epochs) == (size.data.image_size, size.optim.epochs)
        assert (own.encoder.width, own.encoder.depth) == (size.encoder.width, size.encoder.depth)
        assert recipe_book.get(f"{family}-demo").run.out == f"runs/{family}-demo", "another run folder than the demo's"
        moved_by = (own.optim.kind, own.optim.lr)
        assert moved_by == (("muon", 3e-3) if family.startswith("ijepa") else ("adamw", 1.5e-3)), "as measured"


def test_the_published_objective_of_ijepa_is_a_recipe_of_its_own():
    """Assran et al. 2023 and the published code, where other objectives have other values."""
    for size in recipe_book.SIZES:
        s = recipe_book.get(f"ijepa-published-{size}")
        assert s.objective == config.Objective(
            kind="latent", target_norm="token", target_layers=1, variance=0.0, covariance=0.0, error="smooth_l1"
        )
        assert (s.masks.sampler, s.masks.blocks, s.masks.block_area) == ("ijepa", 4, (0.15, 0.2))
        assert (s.masks.context_area, s.masks.predict) == ((0.85, 1.0), "dropped")
        assert (s.predictor.conditioning, s.data.flip, s.actions.jitter_probability) == ("none", 0.0, 0.0)


def test_the_former_name_of_a_family_keeps_working():
    """`ijepa-SIZE` was I-JEPA's masking on our objective, and still is."""
    former, now = recipe_book.get("ijepa-cifar10"), recipe_book.get("ijepa-style-cifar10")
    assert replace(former, recipe="") == replace(now, recipe="")
    assert former.recipe == "ijepa-cifar10"
    assert not [name for name in recipe_book.RECIPES if name in ("ijepa-cifar10", "ijepa-demo")]
    with pytest.raises(UserError, match="no recipe 'ijepa-cifar'"):
        recipe_book.get("ijepa-cifar")
