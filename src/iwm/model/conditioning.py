"""How the predictor is told the action a (paper section 3.2). One class for each way, found by its name.

none      not at all (I-JEPA)
sequence  one more token for each component of a, each through its own Linear(1 -> width)
feature   [q_i ; a] through a three-layer ReLU MLP, for every query q_i
adaln     every block is modulated (AdaLN-Zero; ours)
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iwm import config
from iwm.model.vit import AdaLNBlock, PlainBlock, head_count
from iwm.runtime.registry import Registry

Block = Callable[..., Tensor]
"""Maps tokens [b, n, w] to tokens of the same shape; `count=q` asks for the first q of them only."""


class Conditioning:
    """How a predictor is told the action; by itself: not at all. Your own inherits and overrides what differs.

    It holds settings only. Weights belong to the predictor, which is passed to every method: `build` adds them under
    names of your choice, `predictor.get_submodule(NAME)` and `get_parameter(NAME)` find them again. With b images, q
    queries, c context tokens, w = predictor.width and k components of the action, the predictor computes

        q_i = query(mask token + position_i, a),   out = blocks([q ; context ; tokens(a)]) at the queries

    (paper section 3.2). `iwm.register_conditioning(CLASS)` lets `predictor.conditioning` name it. Register it again
    before weights trained with it are loaded: code never travels with weights.
    """

    name: ClassVar[str] = ""
    """What `predictor.conditioning` says."""
    uses_action: ClassVar[bool] = True
    """False where the predictor is told nothing, so that health asks no reaction of it."""
    paper_mrr: ClassVar[float | None] = None
    """MRR in the paper's table 1, where it has one; `iwm sweep` shows it beside ours."""

    def __init__(self, settings: config.Predictor, actions: int) -> None:
        self.settings, self.width, self.actions = settings, settings.width, actions

    # ---- weights -----------------------------------------------------------------------------------------------

    def build(self, predictor: nn.Module) -> None:
        """Set `predictor.blocks`, `settings.depth` blocks of width w, and add weights of your own."""
        heads, ratio = head_count(self.width), self.settings.mlp_ratio
        predictor.blocks = nn.ModuleList([PlainBlock(self.width, heads, ratio) for _ in range(self.settings.depth)])

    def reset(self, predictor: nn.Module) -> None:
        """Draw your own weights anew. Every Linear has been drawn by `predictor.init` before, LayerNorms are at one."""

    def open_gates(self, predictor: nn.Module) -> None:
        """Make an untrained predictor look at its context, where it starts as a function that does not."""

    # ---- the forward pass --------------------------------------------------------------------------------------

    def query(
        self, predictor: nn.Module, query: Float[Tensor, "b q w"], action: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b q w"]:
        """The queries as the blocks get them."""
        return query

    def tokens(self, predictor: nn.Module, action: Float[Tensor, "b k"]) -> list[Float[Tensor, "b _ w"]]:
        """Tokens that take part in the attention beside queries and context; their outputs are discarded."""
        return []

    def blocks(self, predictor: nn.Module, action: Float[Tensor, "b k"]) -> list[Block]:
        """The blocks, in order, as functions of the tokens alone (and of `count`)."""
        return list(predictor.get_submodule("blocks").children())

    # ---- cost --------------------------------------------------------------------------------------------------

    @property
    def token_count(self) -> int:
        """How many tokens `tokens` adds."""
        return 0

    def parameter_count(self) -> int:
        """Parameters beyond those of a predictor with plain blocks."""
        return 0

    def flops(self, queries: int) -> float:
        """Operations of one image's forward pass beyond plain blocks on all tokens; 2 x inputs x outputs a Linear."""
        return 0.0


class NoConditioning(Conditioning):
    """The predictor is not told the action (I-JEPA)."""

    name = "none"
    uses_action = False
    paper_mrr = 0.00


class ActionTokens(Conditioning):
    """One more token for each component of the action (paper section 3.2)."""

    name = "sequence"
    paper_mrr = 0.82

    def build(self, predictor: nn.Module) -> None:
        super().build(predictor)
        predictor.action_weight = nn.Parameter(torch.zeros(self.actions, self.width))
        predictor.action_bias = nn.Parameter(torch.zeros(self.actions, self.width))

    def reset(self, predictor: nn.Module) -> None:
        std = 0.02 if self.settings.init == "trunc_normal" else 1.0
        nn.init.trunc_normal_(predictor.get_parameter("action_weight"), std=std)
        nn.init.trunc_normal_(predictor.get_parameter("action_bias"), std=0.02)

    def tokens(self, predictor: nn.Module, action: Float[Tensor, "b k"]) -> list[Float[Tensor, "b _ w"]]:
        weight, bias = predictor.get_parameter("action_weight"), predictor.get_parameter("action_bias")
        return [action[:, :, None] * weight + bias]

    @property
    def token_count(self) -> int:
        return self.actions

    def parameter_count(self) -> int:
        return 2 * self.actions * self.width


class FeatureMLP(Conditioning):
    """Every query and the action together through an MLP (paper section 3.2, the paper's default)."""

    name = "feature"
    paper_mrr = 0.79

    def build(self, predictor: nn.Module) -> None:
        super().build(predictor)
        width = self.width
        predictor.condition = nn.Sequential(
            nn.Linear(width + self.actions, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def reset(self, predictor: nn.Module) -> None:
        reset_mlp(predictor.get_submodule("condition"), self.settings)

    def query(
        self, predictor: nn.Module, query: Float[Tensor, "b q w"], action: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b q w"]:
        action = action[:, None].expand(-1, query.shape[1], -1)
        return predictor.get_submodule("condition")(torch.cat([query, action], dim=-1))

    def parameter_count(self) -> int:
        w, k = self.width, self.actions
        return (w + k + 1) * w + 2 * (w + 1) * w

    def flops(self, queries: int) -> float:
        return queries * 2 * self.width * (3 * self.width + self.actions)


class AdaLN(Conditioning):
    """Every block is modulated by the action (AdaLN-Zero, Peebles and Xie 2023; not in the paper)."""

    name = "adaln"

    def build(self, predictor: nn.Module) -> None:
        width, heads, ratio = self.width, head_count(self.width), self.settings.mlp_ratio
        predictor.condition = nn.Sequential(
            nn.Linear(self.actions, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        predictor.blocks = nn.ModuleList([AdaLNBlock(width, heads, ratio, width) for _ in range(self.settings.depth)])

    def reset(self, predictor: nn.Module) -> None:
        reset_mlp(predictor.get_submodule("condition"), self.settings)
        for block in predictor.get_submodule("blocks").children():
            cast(AdaLNBlock, block).close_gates()

    def open_gates(self, predictor: nn.Module) -> None:
        for block in predictor.get_submodule("blocks").children():
            cast(AdaLNBlock, block).open_gates()

    def blocks(self, predictor: nn.Module, action: Float[Tensor, "b k"]) -> list[Block]:
        condition = predictor.get_submodule("condition")(action)
        return [partial(block, condition=condition) for block in super().blocks(predictor, action)]

    def parameter_count(self) -> int:
        w, k = self.width, self.actions
        return (k + 1) * w + (w + 1) * w + self.settings.depth * (w + 1) * 6 * w

    def flops(self, queries: int) -> float:
        return self.settings.depth * 2 * 6 * self.width**2 + 2 * self.width * (self.width + self.actions)


def reset_mlp(mlp: nn.Module, settings: config.Predictor) -> None:
    """Draw the Linears of an MLP of the action by He's rule where the initialisation is xavier.

    The rule keeps the variance through ReLUs and SiLUs; trunc-normal 0.02 shrinks it several-fold a layer at small
    widths and the action is learned late or never (docs/lab-notes.md).
    """
    if settings.init == "xavier":
        for layer in mlp.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")


CONDITIONINGS = Registry(
    Conditioning, "predictor.conditioning", "register_conditioning", NoConditioning, ActionTokens, FeatureMLP, AdaLN
)
"""Every conditioning by its name, in the order of the paper's table 1."""
register_conditioning = CONDITIONINGS.register


def conditioning_of(settings: config.Predictor, actions: int) -> Conditioning:
    """The conditioning that the settings name, for an action of so many components.

    Raises UserError when there is none of that name.
    """
    return CONDITIONINGS.find(settings.conditioning)(settings, actions)
