"""The kinds of probes: what each looks at, and how it classifies frozen features.

    kNN        score_c(z) = sum over the k nearest z_i of class c of exp(cos(z, z_i) / T)
    linear     min_W mean_i CE(W z_i + b, y_i) + l2/2 |W|^2     on standardised features, full-batch L-BFGS
    attentive  one learned query over the tokens (`AttentiveHead`)
    instance   no labels: the same image is found again among others (`iwm.evaluation.tasks.instance`)

A kind is a class in the table PROBES; `register_probe` adds one of your own, which `iwm probe --kind NAME` then takes:

    class Nearest(FeatureProbe):
        name = "nearest"

        def evaluate(self, train, labels, test, classes, tried=()):
            nearest = torch.cdist(test, train).argmin(dim=1)
            return Answer(F.one_hot(labels[nearest], classes).float())

    register_probe(Nearest)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from iwm.data.splits import tenth_of_each_class
from iwm.evaluation.grids import best_of, grid_ends
from iwm.evaluation.tasks.classifier import AttentiveHead
from iwm.evaluation.tasks.features import Pooling
from iwm.evaluation.tasks.fitting import Learner, Samples, accuracy, choose, decay_groups, logits_of
from iwm.evaluation.tasks.linear import choose_l2, chosen_l2, fit_chosen, tenths_of
from iwm.runtime.devices import Session
from iwm.runtime.registry import Registry
from iwm.verbs.probe import L2, ProbeSettings


@dataclass(frozen=True)
class Answer:
    """What a probe says of test images, and how it came to it."""

    logits: Float[Tensor, "m c"]
    chosen: dict[str, Any] = field(default_factory=dict)
    """Settings that were chosen on a tenth of the training images, or were given."""
    tried: list[dict[str, Any]] = field(default_factory=list)
    """Everything that was tried, with its accuracy on the tenth, or tenths, under "tenth_top1"."""

    @property
    def at_grid_end(self) -> dict[str, str]:
        """Which settings were chosen from an end of their grid (`iwm.evaluation.grids`)."""
        return grid_ends(self.chosen, self.tried)


@dataclass(frozen=True)
class FeatureProbe:
    """One way to classify frozen features. Nothing in it sees a test label."""

    name: ClassVar[str] = ""
    """What `--kind` takes."""
    searches_lrs: ClassVar[bool] = False
    """Whether it is trained, with a search over `lrs`."""
    needs_labels: ClassVar[bool] = True
    settings: ProbeSettings
    session: Session

    @property
    def pooling(self) -> Pooling:
        """What the probe looks at: all tokens, or one vector made of them."""
        return self.settings.pooling

    @property
    def words(self) -> list[str]:
        """How it differs from the plain way, for the name of the result."""
        return [self.pooling] if self.pooling in ("max", "2x2") else []

    @property
    def seeds(self) -> dict[str, int]:
        """What is drawn by which seed: the noise of the probe itself. Everything else in it is the same every time."""
        return {"tenth": self.settings.seed}

    def tenths(self, images: int) -> int:
        """How many tenths of so many training images choose its settings."""
        return 1

    def evaluate(
        self,
        train: Float[Tensor, "n *t d"],
        labels: Int64[Tensor, " n"],
        test: Float[Tensor, "m *t d"],
        classes: int,
        tried: Sequence[dict[str, Any]] = (),
    ) -> Answer:
        """Fit to the training features and answer for the test features.

        `tried` is what `on_tenth` has tried with these features already.
        """
        raise NotImplementedError

    def on_tenth(
        self, values: Float[Tensor, "n *t d"], labels: Int64[Tensor, " n"], classes: int
    ) -> tuple[float, list[dict[str, Any]]]:
        """Accuracy on a seeded tenth of the training images after a fit to the rest, and everything tried; NaN and
        nothing where no class has two images."""
        rest, tenth = tenth_of_each_class(labels, self.settings.seed)
        if not len(tenth):
            return math.nan, []
        answer = self.evaluate(values[rest], labels[rest], values[tenth], classes)
        return accuracy(answer.logits, labels[tenth]), []


class Knn(FeatureProbe):
    """The k nearest neighbours by cosine."""

    name = "knn"

    @property
    def seeds(self) -> dict[str, int]:
        return {}  # nothing of it is drawn

    def evaluate(
        self,
        train: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        test: Float[Tensor, "m d"],
        classes: int,
        tried: Sequence[dict[str, Any]] = (),
    ) -> Answer:
        k, temperature = min(self.settings.k, len(train)), self.settings.temperature
        train, labels, test = (values.to(self.session.device) for values in (train, labels, test))
        votes = knn_scores(train, labels, test, classes, k, temperature)
        return Answer(votes.cpu(), {"k": k, "temperature": temperature})


class LinearProbe(FeatureProbe):
    """Multinomial logistic regression."""

    name = "linear"

    @property
    def words(self) -> list[str]:
        return super().words + ([] if self.settings.standardise else ["raw-scale"])

    def tenths(self, images: int) -> int:
        return tenths_of(images)

    def evaluate(
        self,
        train: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        test: Float[Tensor, "m d"],
        classes: int,
        tried: Sequence[dict[str, Any]] = (),
    ) -> Answer:
        train, labels, test = (values.to(self.session.device) for values in (train, labels, test))
        tried = list(tried) or self.on_tenth(train, labels, classes)[1]
        s = self.settings
        weights = fit_chosen(train, labels, classes, tried, s.standardise, s.l2)
        return Answer(weights.logits(test).cpu(), {"l2": chosen_l2(tried, s.l2)}, tried)

    def on_tenth(
        self, values: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: int
    ) -> tuple[float, list[dict[str, Any]]]:
        s = self.settings
        tried = choose_l2(values, labels, classes, s.l2, s.seed, s.standardise, beyond=tuple(s.l2) == L2)
        return best_of(tried)["tenth_top1"] if tried else math.nan, tried


class AttentiveProbe(FeatureProbe):
    """The attentive head, trained on all tokens."""

    name = "attentive"
    searches_lrs = True

    @property
    def pooling(self) -> Pooling:
        return "tokens"

    @property
    def seeds(self) -> dict[str, int]:
        return super().seeds | {"head": self.settings.seed, "batches": self.settings.seed}

    def evaluate(
        self,
        train: Float[Tensor, "n t d"],
        labels: Int64[Tensor, " n"],
        test: Float[Tensor, "m t d"],
        classes: int,
        tried: Sequence[dict[str, Any]] = (),
    ) -> Answer:
        s, session = self.settings, self.session

        def learner(choice: dict[str, Any]) -> Learner:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(s.seed)
                head = AttentiveHead(train.shape[-1], classes).to(session.device)
            groups = decay_groups(head, choice["lr"], s.schedule.weight_decay)
            return Learner(head, lambda tokens: head(tokens.float()), groups)

        grid, samples = [{"lr": lr} for lr in s.lrs], Samples(train[None], labels)
        trained = choose(learner, grid, samples, s.schedule, seed=s.seed, session=session, title="attentive probe")
        return Answer(logits_of(trained.learner.logits, test, session), trained.choice, trained.tried)


class InstanceProbe(FeatureProbe):
    """The same image found again (`iwm.evaluation.tasks.instance`). It learns nothing, so it needs no labels, and has
    no `evaluate`."""

    name = "instance"
    needs_labels = False

    @property
    def seeds(self) -> dict[str, int]:
        return dict.fromkeys(("gallery", "crops", "changes"), self.settings.seed)


def knn_scores(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "m c"]:
    """Votes of the k nearest training features by cosine, each weighing exp(cosine / temperature) (Wu et al. 2018)."""
    train = F.normalize(train.float(), dim=1)
    parts = []
    at_once = max(1, 2**25 // len(train))
    for part in F.normalize(test.float(), dim=1).split(at_once):
        cosine, nearest = (part @ train.T).topk(k, dim=1)
        # Less the largest possible cosine: the order stays and the exponential cannot overflow at small temperatures.
        votes = ((cosine - 1) / temperature).double().exp()
        parts.append(votes.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], votes))
    return torch.cat(parts)


# ---- the table -----------------------------------------------------------------------------------------------------

PROBES = Registry(FeatureProbe, "--kind", "register_probe", Knn, LinearProbe, AttentiveProbe, InstanceProbe)
"""Every kind of probe by its name."""
register_probe = PROBES.register


def probe_of(settings: ProbeSettings, session: Session) -> FeatureProbe:
    """The probe of `settings.kind`. Raises UserError with the nearest kind when there is none."""
    return PROBES.find(settings.kind)(settings, session)
