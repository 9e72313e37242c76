"""The predictor p, the world model: a narrow transformer over context tokens and queries, told the action.

    x   = W_in z_context + positions,      q_i = mask token + position_i
    out = W_out LN(blocks([x ; q]))        at the queries

How it is told the action a (paper section 3.2): `feature` passes [q_i ; a] through a three-layer ReLU MLP; `sequence`
appends one token per component, each through its own Linear(1 -> width); `none` does not tell it (I-JEPA); `adaln`,
ours, modulates every block (AdaLN-Zero).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int64
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from iwm import config
from iwm.model.vit import (
    AdaLNBlock,
    Grid,
    PlainBlock,
    block_outputs,
    head_count,
    initialise,
    rescale_residuals,
    sincos_positions,
)
from iwm.runtime.errors import UserError


class Predictor(nn.Module):
    """Written IWM(depth, width). `encoder_width` is d, `actions` is k, the action's number of components.

    `output` is the width of what it says, by default d; 0 for none: the queries after the final norm come out.
    """

    positions: Tensor

    def __init__(
        self, settings: config.Predictor, encoder_width: int, actions: int, grid: Grid, output: int | None = None
    ) -> None:
        super().__init__()
        width, kind = settings.width, settings.conditioning
        if width % 4:
            raise UserError(f"predictor.width {width} must be a multiple of 4.")
        self.settings = settings
        self.grid = grid
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        heads = head_count(width)
        if kind == "adaln":
            self.condition = nn.Sequential(nn.Linear(actions, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            blocks = [AdaLNBlock(width, heads, settings.mlp_ratio, width) for _ in range(settings.depth)]
        else:
            blocks = [PlainBlock(width, heads, settings.mlp_ratio) for _ in range(settings.depth)]
        self.blocks = nn.ModuleList(blocks)
        if kind == "feature":
            self.condition = nn.Sequential(
                nn.Linear(width + actions, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, width),
            )
        if kind == "sequence":
            self.action_weight = nn.Parameter(torch.zeros(actions, width))
            self.action_bias = nn.Parameter(torch.zeros(actions, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        output = encoder_width if output is None else output
        self.project = nn.Linear(width, output) if output else nn.Identity()
        self.reset()

    def reset(self) -> None:
        """Draw all weights anew: the predictor as it is before training."""
        init = self.settings.init
        initialise(self, init)
        rescale_residuals(self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if self.settings.conditioning in ("feature", "adaln") and init == "xavier":
            for layer in self.condition:
                # He's rule keeps the variance through ReLUs and SiLUs; trunc-normal 0.02 shrinks it several-fold a
                # layer at small widths and the action is learned late or never (docs/lab-notes.md).
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        if self.settings.conditioning == "sequence":
            nn.init.trunc_normal_(self.action_weight, std=0.02 if init == "trunc_normal" else 1.0)
            nn.init.trunc_normal_(self.action_bias, std=0.02)
        for block in self.blocks:
            if isinstance(block, AdaLNBlock):
                block.close_gates()

    def open_gates(self) -> None:
        """Make a random predictor see its context (only `adaln` starts closed)."""
        for block in self.blocks:
            if isinstance(block, AdaLNBlock):
                block.open_gates()

    def _positions(self, grid: Grid) -> Float[Tensor, "n w"]:
        """Positions of any grid; another one than trained on is resampled to the trained one's extent."""
        if grid == self.grid:
            return self.positions
        return resample_abs_pos_embed(self.positions[None], list(grid), list(self.grid), num_prefix_tokens=0)[0]

    def forward(
        self,
        tokens: Float[Tensor, "b c d"],
        action: Float[Tensor, "b k"],
        *,
        context: Int64[Tensor, "b c"] | None = None,
        queries: Int64[Tensor, "b q"] | None = None,
        grid: Grid | None = None,
        task: Float[Tensor, "b t w"] | None = None,
    ) -> Float[Tensor, "b q o"]:
        """Predict the target's tokens, or patches, at the queried positions.

        `tokens` are the encoder's at positions `context` of `grid`; None stands for all positions. `task` are learned
        tokens that tell which task is meant; they take part in the attention, their outputs are discarded. The output
        is in target space (see `iwm.model.objectives.target_norm`).
        """
        return self.project(self.features(tokens, action, context=context, queries=queries, grid=grid, task=task))

    def features(
        self,
        tokens: Float[Tensor, "b c d"],
        action: Float[Tensor, "b k"],
        *,
        context: Int64[Tensor, "b c"] | None = None,
        queries: Int64[Tensor, "b q"] | None = None,
        grid: Grid | None = None,
        task: Float[Tensor, "b t w"] | None = None,
    ) -> Float[Tensor, "b q w"]:
        """The queries after the final norm, before the projection to target space."""
        last = [len(self.blocks)]
        return self.intermediates(tokens, action, last, context=context, queries=queries, grid=grid, task=task)[0]

    def intermediates(
        self,
        tokens: Float[Tensor, "b c d"],
        action: Float[Tensor, "b k"],
        numbers: Sequence[int],
        *,
        context: Int64[Tensor, "b c"] | None = None,
        queries: Int64[Tensor, "b q"] | None = None,
        grid: Grid | None = None,
        task: Float[Tensor, "b t w"] | None = None,
    ) -> list[Float[Tensor, "b q w"]]:
        """The queries after the blocks of these numbers (see `vit.block_outputs`)."""
        batch, kind = len(tokens), self.settings.conditioning
        positions = self._positions(grid or self.grid)
        x = self.embed(tokens) + (positions if context is None else positions[context])
        query = self.mask_token + (positions if queries is None else positions[queries])
        query = query.expand(batch, -1, -1)
        count = query.shape[1]
        action = action.to(query.dtype)
        if kind == "feature":
            query = self.condition(torch.cat([query, action[:, None].expand(-1, count, -1)], dim=-1))
        parts = [query, x]  # queries first: their outputs are one contiguous slice
        if kind == "sequence":
            parts.append(action[:, :, None] * self.action_weight + self.action_bias)
        if task is not None:
            parts.append(task)
        x = torch.cat([part.to(x.dtype) for part in parts], dim=1)
        blocks: list[Callable[..., Tensor]] = list(self.blocks)
        if kind == "adaln":
            condition = self.condition(action)
            blocks = [partial(block, condition=condition) for block in self.blocks]
        blocks[-1] = partial(blocks[-1], count=count)  # nothing looks at what the last one would say of the others
        found = block_outputs(x, blocks, numbers, self.norm)
        return [outputs[:, :count] for outputs in found]


def for_tasks(settings: config.Config, actions: int, grid: Grid, depth: int = 0) -> Predictor:
    """A fresh predictor of `depth` blocks (0: all) as tasks use it: one of pixels without its way to them, so that
    heads see tokens."""
    own = replace(settings.predictor, depth=depth or settings.predictor.depth)
    output = 0 if settings.objective.kind == "pixels" else None
    return Predictor(own, settings.encoder.width, actions, grid, output)


def seen_width(settings: config.Config, predicts: bool) -> int:
    """Width of the tokens a task's head sees: the encoder's, or those `for_tasks` says (`predicts`)."""
    of_pixels = predicts and settings.objective.kind == "pixels"
    return settings.predictor.width if of_pixels else settings.encoder.width
