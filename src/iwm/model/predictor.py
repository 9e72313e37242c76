"""The predictor p, the world model: a narrow transformer over context tokens and queries, told the action.

    x   = W_in z_context + positions,      q_i = mask token + position_i
    out = W_out LN(blocks([x ; q]))        at the queries

With `predictor.residual` the tokens change in their places, and what comes out is that change:

    x   = W_in z_i + position_i where z_i is seen, mask token + position_i elsewhere;   out = W_out LN(blocks(x))

How it is told the action: `iwm.model.conditioning`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from iwm import config
from iwm.model.conditioning import conditioning_of
from iwm.model.vit import Grid, gather_tokens, initialise, rescale_residuals, sincos_positions, without_affine
from iwm.runtime.errors import UserError


class Predictor(nn.Module):
    """Written IWM(depth, width). `encoder_width` is d, `actions` is k, the action's number of components.

    `output` is the width of what it says, by default d; 0 for none: the queries after the final norm come out.
    """

    positions: Tensor
    blocks: nn.ModuleList

    def __init__(
        self, settings: config.Predictor, encoder_width: int, actions: int, grid: Grid, output: int | None = None
    ) -> None:
        super().__init__()
        width = settings.width
        if width % 4:
            raise UserError(f"predictor.width {width} must be a multiple of 4.")
        self.settings = settings
        self.conditioning = conditioning_of(settings, actions)
        self.grid = grid
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.conditioning.build(self)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        output = encoder_width if output is None else output
        self.project = nn.Linear(width, output) if output else nn.Identity()
        self.reset()

    def reset(self) -> None:
        """Draw all weights anew: the predictor as it is before training."""
        initialise(self, self.settings.init)
        rescale_residuals(self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if self.settings.residual and isinstance(self.project, nn.Linear):
            nn.init.zeros_(self.project.weight)  # it begins with "nothing changes"
        self.conditioning.reset(self)

    def open_gates(self) -> None:
        """Make a random predictor see its context (only `adaln` starts closed)."""
        self.conditioning.open_gates(self)

    def positions_of(self, grid: Grid) -> Float[Tensor, "n w"]:
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
        last = [len(self.blocks)]
        (x,) = self.intermediates(tokens, action, last, context=context, queries=queries, grid=grid, task=task)
        return self.project(x)

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
        """The queries after the blocks of these numbers, from 1: the last block's after the final norm, an earlier
        one's after a LayerNorm without affine."""
        positions = self.positions_of(grid or self.grid)
        x = self.embed(tokens) + (positions if context is None else positions[context])
        asked = None if self.settings.residual else queries
        query = self.mask_token + (positions if asked is None else positions[asked])
        query = query.expand(tokens.shape[0], -1, -1)  # len() would fix the batch of an exported graph
        if self.settings.residual:
            query, x = self._in_place(query, x, context), x[:, :0]
        count = query.shape[1]
        action = action.to(query.dtype)
        query = self.conditioning.query(self, query, action)
        # Queries first: their outputs are one contiguous slice.
        parts = [query, x, *self.conditioning.tokens(self, action), *([] if task is None else [task])]
        x = torch.cat([part.to(x.dtype) for part in parts], dim=1)
        blocks = self.conditioning.blocks(self, action)
        blocks[-1] = partial(blocks[-1], count=count)  # nothing looks at what the last one would say of the others
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(blocks[: max(numbers)], start=1):
            x = block(x)
            if number in numbers:
                outputs[number] = (self.norm if number == len(blocks) else without_affine)(x)[:, :count]
        where = queries if self.settings.residual else None
        return [gather_tokens(outputs[number], where) for number in numbers]

    def _in_place(
        self, query: Float[Tensor, "b n w"], seen: Float[Tensor, "b c w"], context: Int64[Tensor, "b c"] | None
    ) -> Float[Tensor, "b n w"]:
        """`predictor.residual`: every position of the grid once, the token itself where it is seen."""
        if context is None:
            return seen
        return query.to(seen.dtype).scatter(1, context.unsqueeze(2).expand_as(seen), seen)
