"""A planted world model that is exact, for the tests of everything that looks into a world model or acts with it."""

import torch
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.actions.transformation import Transformation
from iwm.model.world_model import ImageWorldModel, Tokens

SIZE = 32
CFG = config.Config(data=config.Data(image_size=SIZE))
SPACE = ActionSpace.from_config(CFG.actions, SIZE)


class Oracle(ImageWorldModel):
    """Stands in for a model: pixels are its tokens, and it computes what the action does instead of learning it.

    What the paper's set destroys cannot be computed back: to undo it looks the `clean` image up. In other spaces a flag
    is undone by doing it once more.
    """

    def __init__(
        self, clean: Tensor | None = None, wrong: bool = False, space: ActionSpace = SPACE, size: int = SIZE
    ) -> None:
        torch.nn.Module.__init__(self)
        self.settings, self.space, self.size = config.Config(data=config.Data(image_size=size)), space, size
        self.clean, self.sign = clean, -1 if wrong else 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def decodes(self) -> bool:
        return False

    @property
    def grid(self) -> tuple[int, int]:
        return (self.size, self.size)

    def encode(self, images: Tensor, *, student: bool = False) -> Tokens:
        pixels = images if images.is_floating_point() else images.float() / 255
        return Tokens(pixels.flatten(2).transpose(1, 2), self.grid)

    def target(self, images: Tensor) -> Tokens:
        return self.encode(images)

    def predict(self, tokens: Tokens, action: Tensor) -> Tokens:
        source = tokens.values.transpose(1, 2).unflatten(2, self.grid)
        action = self.sign * action.expand(len(source), -1)
        flags = torch.tensor([not t.graded for t in self.space.transformations])
        if self.clean is not None and (action * flags).any():
            return self.encode(self.clean if self.sign > 0 else 1 - self.clean)
        for position in flags.nonzero()[:, 0].tolist():
            undone = self.space.transformations[position].apply(source, action[:, position])
            source = torch.where(action[:, position, None, None, None] != 0, undone, source)
        if self.space is SPACE:
            return self.encode(self.space.apply(source, self.space.reach(action)))
        for position in (~flags).nonzero()[:, 0].tolist():  # not by space.apply, which lets no slope through
            t = self.space.transformations[position]
            source = t.apply(source, t.neutral + action[:, position] * t.range)
        return self.encode(source)


def redder(images: Tensor, value: Tensor) -> Tensor:
    """Red up and blue down by `value`."""
    return images + value[:, None, None, None] * torch.tensor([1.0, 0.0, -1.0])[:, None, None]


REVERSIBLE = ActionSpace(
    (
        Transformation(
            name="light", apply=lambda x, value: x + value[:, None, None, None], graded=True, both=True,
            low=-0.1, high=0.1, neutral=0.0, probability=1.0,
        ),
        Transformation(
            name="warmth", apply=redder, graded=True, both=True,
            low=-0.1, high=0.1, neutral=0.0, probability=1.0,
        ),
        Transformation(
            name="negative", apply=lambda x, value: 1 - x, graded=False, both=False,
            low=1.0, high=1.0, neutral=0.0, probability=0.2,
        ),
        Transformation(
            name="mirror", apply=lambda x, value: x.flip(-1), graded=False, both=False,
            low=1.0, high=1.0, neutral=0.0, probability=0.2,
        ),
    ),
    set="reversible",
)  # fmt: skip
"""A space of which everything can be computed back, for pixels well inside [0, 1]."""


def photo(count: int = 1) -> Tensor:
    """Smooth colourful uint8 images [n, 3, 32, 32]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear") * 255).byte()


def muted(count: int = 1) -> Tensor:
    """`photo` with all values well inside the range, so that the reversible space clips nothing."""
    return (photo(count).float() * 0.4 + 76).byte()


class SeeingOracle(Oracle):
    """An oracle whose tokens are decoded without error: they are pixels."""

    @property
    def decodes(self) -> bool:
        return True

    def decode(self, tokens: Tokens) -> Tensor:
        return tokens.values.transpose(1, 2).unflatten(2, tokens.grid).clamp(0, 1)
