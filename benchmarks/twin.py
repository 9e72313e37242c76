"""The plain twin: one world model's step written straight from the paper, with no trick for speed.

    L = mean_i || p(f(x_visible), a)_i - norm(f-bar(y))_i ||^2 (+ VICReg's two terms where the settings ask for them)

Every piece is its own module, queries, keys and values have a Linear each, attention is two matrix products and a
softmax, the teacher moves parameter by parameter, AdamW is the unfused one. It shares no line with `iwm` but the
settings, so that equal losses from equal weights (tests/test_benchmarks.py) say both compute the same thing.
"""

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn

from iwm.actions.views import Views
from iwm.config import Config
from iwm.model.masks import Masks
from iwm.model.world_model import ImageWorldModel
from iwm.training.schedule import Schedule


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-2, -1) / math.sqrt(shape[-1])).softmax(dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, modulated: bool = False) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.attention = Attention(width, heads)
        self.fc1, self.gelu, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width) if modulated else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.modulation is None:
            x = x + self.attention(self.norm1(x))
            return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.fc2(self.gelu(self.fc1(self.norm2(x) * (1 + scale2) + shift2)))


class Encoder(nn.Module):
    positions: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, settings: Config) -> None:
        super().__init__()
        s = settings.encoder
        self.patches = nn.Conv2d(3, s.width, kernel_size=s.patch_size, stride=s.patch_size)
        self.blocks = nn.ModuleList([Block(s.width, s.heads, s.mlp_ratio) for _ in range(s.depth)])
        self.norm = nn.LayerNorm(s.width, eps=1e-6)
        side = settings.data.image_size // s.patch_size
        self.register_buffer("positions", torch.zeros(side * side, s.width))
        self.register_buffer("mean", torch.tensor(s.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(s.std).view(3, 1, 1))

    def forward(self, images: Tensor, keep: Tensor | None, average: int) -> Tensor:
        x = self.patches((images - self.mean) / self.std).flatten(2).transpose(1, 2) + self.positions
        if keep is not None:
            x = torch.stack([row[kept] for row, kept in zip(x, keep, strict=True)])
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        if average == 1:
            return self.norm(x)
        layers = [nn.functional.layer_norm(output.float(), output.shape[-1:]) for output in outputs[-average:]]
        return torch.stack(layers).mean(dim=0)


class Predictor(nn.Module):
    positions: Tensor

    def __init__(self, settings: Config, heads: int, actions: int) -> None:
        super().__init__()
        s, width, outer = settings.predictor, settings.predictor.width, settings.encoder.width
        self.kind = s.conditioning
        if self.kind == "sequence":
            raise ValueError("the twin knows the conditionings none, feature and adaln")
        self.embed, self.project = nn.Linear(outer, width), nn.Linear(width, outer)
        self.mask_token = nn.Parameter(torch.zeros(width))
        side = settings.data.image_size // settings.encoder.patch_size
        self.register_buffer("positions", torch.zeros(side * side, width))
        modulated = self.kind == "adaln"
        self.blocks = nn.ModuleList([Block(width, heads, s.mlp_ratio, modulated) for _ in range(s.depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if self.kind == "feature":
            layers = (nn.Linear(width + actions, width), nn.Linear(width, width), nn.Linear(width, width))
            self.condition = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        if self.kind == "adaln":
            self.condition = nn.Sequential(nn.Linear(actions, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, context: Tensor, action: Tensor, where: Tensor, queried: Tensor) -> Tensor:
        x = self.embed(context) + self.positions[where]
        query = self.mask_token + self.positions[queried]
        if self.kind == "feature":
            told = action[:, None].expand(-1, query.shape[1], -1)
            query = self.condition(torch.cat([query, told], dim=-1))
        condition = self.condition(action) if self.kind == "adaln" else None
        count = x.shape[1]
        x = torch.cat([x, query.to(x.dtype)], dim=1)
        for block in self.blocks:
            x = block(x, condition)
        return self.project(self.norm(x)[:, count:])


class Twin(nn.Module):
    """Starts from the weights of `model`, an untrained world model of the same settings."""

    def __init__(self, model: ImageWorldModel) -> None:
        super().__init__()
        self.settings = model.settings
        width = self.settings.encoder.width
        heads = cast(int, model.predictor.get_submodule("blocks.0.attn").num_heads)
        self.student = Encoder(self.settings)
        self.predictor = Predictor(self.settings, heads, model.space.dim)
        _take_encoder(self.student, model.encoder)
        _take_predictor(self.predictor, model.predictor)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.mean, self.variance, self.folded = torch.zeros(width), torch.ones(width), 0
        self.to(model.device)

    def target(self, images: Tensor) -> Tensor:
        """The teacher's tokens before normalisation."""
        with torch.no_grad():
            return self.teacher(images, None, self.settings.objective.target_layers).float()

    def normalise(self, raw: Tensor) -> Tensor:
        if self.settings.objective.target_norm == "token":
            return nn.functional.layer_norm(raw, raw.shape[-1:])
        return (raw - self.mean.to(raw.device)) / self.variance.to(raw.device).clamp_min(1e-4).sqrt()

    def fold(self, raw: Tensor) -> None:
        """Running mean and variance of every channel: a plain average first, momentum 0.95 later."""
        values = raw.flatten(0, 1)
        weight = max(1 / (self.folded + 1), 0.05)
        self.mean = (1 - weight) * self.mean.to(raw.device) + weight * values.mean(dim=0)
        self.variance = (1 - weight) * self.variance.to(raw.device) + weight * values.var(dim=0, correction=0)
        self.folded += 1

    def loss(self, views: Views, masks: Masks, raw: Tensor) -> Tensor:
        context = self.student(views.source, masks.context, 1)
        prediction = self.predictor(context, views.action, masks.context, masks.predicted)
        normalised = self.normalise(raw)
        target = torch.stack([row[queried] for row, queried in zip(normalised, masks.predicted, strict=True)])
        loss = ((prediction.float() - target) ** 2).mean()
        s = self.settings.objective
        if s.variance or s.covariance:
            with torch.autocast(context.device.type, enabled=False):
                variance, covariance = _spread(context.float(), masks.context)
            loss = loss + s.variance * variance + s.covariance * covariance
        return loss


def _spread(tokens: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's variance and covariance terms of tokens centred at each position."""
    flat, places = tokens.flatten(0, 1), where.flatten()
    centred = torch.empty_like(flat)
    for place in places.unique():
        rows = places == place
        centred[rows] = flat[rows] - flat[rows].mean(dim=0)
    covariance = centred.T @ centred / max(1, len(flat) - 1)
    diagonal = covariance.diagonal()
    off = covariance - torch.diag(diagonal)
    return torch.relu(1 - torch.sqrt(diagonal + 1e-4)).mean(), (off**2).sum() / flat.shape[1]


class TwinTraining:
    """Eager training of a twin: plain AdamW, one learning rate read a step, EMA parameter by parameter."""

    def __init__(self, twin: Twin, schedule: Schedule, precision: str) -> None:
        self.twin, self.schedule, self.precision = twin, schedule, precision
        trained = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
        decays = [p for name, p in trained if p.ndim > 1]
        plain = [p for name, p in trained if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decays}, {"params": plain, "weight_decay": 0.0}],
            lr=0.0,
            betas=schedule.settings.betas,
            foreach=False,
            fused=False,
        )

    def step(self, number: int, views: Views, masks: Masks) -> Tensor:
        """One optimiser step; returns the loss."""
        twin, enabled = self.twin, self.precision == "bf16"
        with torch.autocast(views.source.device.type, dtype=torch.bfloat16, enabled=enabled):
            raw = twin.target(views.target)
            if number == 0:
                twin.fold(raw)
            loss = twin.loss(views, masks, raw)
        self.optimiser.zero_grad()
        loss.backward()
        if self.schedule.settings.clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), self.schedule.settings.clip, foreach=False)
        for group, decay in zip(self.optimiser.param_groups, (self.schedule.weight_decay(number), 0.0), strict=True):
            group["lr"], group["weight_decay"] = self.schedule.lr(number), decay
        self.optimiser.step()
        ema = self.schedule.ema(number)
        with torch.no_grad():
            for teacher, student in zip(twin.teacher.parameters(), twin.student.parameters(), strict=True):
                teacher.copy_(ema * teacher + (1 - ema) * student)
        twin.fold(raw)
        return loss.detach()


def _copy(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.load_state_dict({"weight": weight, "bias": bias})


def _take_blocks(mine: nn.ModuleList, theirs: dict[str, Tensor]) -> None:
    for number, block in enumerate(mine):
        assert isinstance(block, Block)
        names = {"norm1": block.norm1, "norm2": block.norm2, "attn.proj": block.attention.out}
        names |= {"mlp.fc1": block.fc1, "mlp.fc2": block.fc2}
        names |= {"modulation": block.modulation} if block.modulation is not None else {}
        for name, layer in names.items():
            _copy(layer, theirs[f"blocks.{number}.{name}.weight"], theirs[f"blocks.{number}.{name}.bias"])
        weights = theirs[f"blocks.{number}.attn.qkv.weight"].chunk(3)
        biases = theirs[f"blocks.{number}.attn.qkv.bias"].chunk(3)
        three = (block.attention.query, block.attention.key, block.attention.value)
        for layer, weight, bias in zip(three, weights, biases, strict=True):
            _copy(layer, weight, bias)


def _take_encoder(mine: Encoder, theirs: nn.Module) -> None:
    state = theirs.state_dict()
    _copy(mine.patches, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    _copy(mine.norm, state["norm.weight"], state["norm.bias"])
    mine.positions.copy_(state["pos_embed"][0])
    _take_blocks(mine.blocks, state)
    for block, number in zip(mine.blocks, range(len(mine.blocks)), strict=True):
        block.norm1.eps = block.norm2.eps = theirs.get_submodule(f"blocks.{number}.norm1").eps  # pyright: ignore


def _take_predictor(mine: Predictor, theirs: nn.Module) -> None:
    state = theirs.state_dict()
    for name in ("embed", "norm", "project"):
        _copy(mine.get_submodule(name), state[f"{name}.weight"], state[f"{name}.bias"])
    with torch.no_grad():
        mine.mask_token.copy_(state["mask_token"])
    mine.positions.copy_(theirs.get_buffer("positions"))
    _take_blocks(mine.blocks, state)
    if mine.kind != "none":
        mine.condition.load_state_dict(theirs.get_submodule("condition").state_dict())
