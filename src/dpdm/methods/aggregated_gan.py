"""DPAF: what a critic's lower layers make of a batch is summed before noise is added, and all above sees that sum.

Source:
    Lin, Hsu, Yu, Cao & Huang 2023 (arXiv 2304.12185), "DPAF: Image Synthesis via Differentially Private Aggregation in
    Forward Phase".
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dpdm.data import ImageDataset
from dpdm.methods import ema
from dpdm.methods.adversary import PairLoader, made_up_pairs
from dpdm.methods.aggregates import ContrastLoss, Critic, LowerLayers, RowLoss
from dpdm.methods.classifier import Labelled, LabelLoader
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.loader import random_images
from dpdm.methods.optimizer import Optimizer
from dpdm.methods.possible import require_finite, require_shares
from dpdm.methods.private_steps import Stepped, TakesSteps, steps_of
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan, MechanismRun, PoissonSums
from dpdm.types import InputError, require_at_most, require_counts, require_within

_MOST_WIDTH, _MOST_LATENT, _MOST_BATCH, _MOST_UPDATES = 2**12, 2**12, 10**5, 10**4
_FEWEST_OF_CLASS = 8  # images in an update; where there are many classes, each update has some of them
_ROWS, _CONTRAST = RowLoss(), ContrastLoss()
_BETAS = (0.5, 0.9)  # of both Adams: a game needs less memory than a descent


@dataclass(frozen=True, kw_only=True)
class AggregatedGAN(TakesSteps):
    """A generator against a critic, of which all but the lower layers sees noisy sums of features alone.

    Args:
        width: Of the generator.
        latent: Random numbers that an image is made of.
        discriminator_width: Channels of the critic's first layer.
        batch_size: Images of an update of the generator; of an aggregate it is privacy.expected_batch_size.
        updates: Of the generator after each aggregate: they cost time, and nothing else.
        lower_every: Each so many steps one trains the lower layers in place of an aggregate; 0 leaves them as they were
            drawn.
        generator_rate: Adam's, of the generator; it falls as that of the lower layers does.
        optimizer: Of the lower layers; and the average of the generator, which is what is released.

    Guarantees:
        * A private image adds to an aggregate its features alone, of length one, in the row of its class. It adds to a
          step of the lower layers one clipped gradient. Either is one noisy sum of the plan.
        * The generator, what is above the lower layers, and how frequent classes are follow from noisy sums alone.

    Source:
        Lin et al. 2023. What is above the lower layers is one linear function for each class, as in McGAN (Mroueh,
        Sercu & Goel 2017), and known in closed form. Clipped pairs of images, and counts by a number that all features
        share, are ours.

    Example:
        >>> plan = AggregatedGAN().plan(epsilon=1.0, dataset_size=60000, steps=200, expected_batch_size=2048)
        >>> [(release.name, release.count) for release in plan.releases]
        [('steps', 200)]
    """

    kind: ClassVar[str] = "aggregated-gan"
    width: int = 128
    latent: int = 32
    discriminator_width: int = 8
    batch_size: int = 100
    updates: int = 10
    lower_every: int = 3
    generator_rate: float = 2e-3
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=2e-3, ema_decay=0.98))

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("latent", "discriminator_width", "batch_size", "updates")}
        require_counts(width=self.width, **counts, lower_every=self.lower_every or 2)
        require_within(8, _MOST_WIDTH, width=self.width)
        require_at_most(_MOST_LATENT, latent=self.latent)
        require_at_most(_MOST_WIDTH, discriminator_width=self.discriminator_width)
        require_within(_FEWEST_OF_CLASS, _MOST_BATCH, batch_size=self.batch_size)
        require_at_most(_MOST_UPDATES, updates=self.updates)
        if self.lower_every == 1:
            raise InputError("lower_every = 1 leaves no step for an aggregate: give 2 or more, or 0")
        require_within(1e-6, 0.1, generator_rate=self.generator_rate)
        if not isinstance(self.optimizer, Optimizer):
            raise InputError(f"optimizer must be Optimizer, not {type(self.optimizer).__name__}")

    def releases(self, budget: Budget) -> tuple[PoissonSums, ...]:
        """Return the steps: aggregates, and among them gradients of the lower layers."""
        return steps_of(budget, unless_said=200)  # each has many updates of the generator

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> SmallGenerator:
        """Return a generator with first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallGenerator(facts, latent=self.latent, width=self.width)

    def stepped(self, generator: ImageGenerator, *, seed: int = 0) -> Stepped:
        """Return what most private steps are taken with: lower layers with first weights, whose features are summed."""
        assert isinstance(generator, SmallGenerator)
        facts, device = generator.facts, generator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            lower = LowerLayers(facts, width=self.discriminator_width).to(device).train_only(layers=False)
        critic, adam = Critic(lower), self._adam(generator)

        def made_up(number: int) -> Labelled:
            return Labelled(*random_images(number, facts, 1, device)[:2])

        def follow() -> None:
            self._follow(generator, critic, adam, torch.Generator().manual_seed(seed))

        return Stepped(lower, _ROWS, made_up, follow=follow)

    def _of_layers(self, generator: ImageGenerator, lower: nn.Module) -> Stepped:
        """Return what the other private steps are taken with: the lower layers, of which the convolutions train."""
        assert isinstance(generator, SmallGenerator)
        assert isinstance(lower, LowerLayers)
        return Stepped(lower.train_only(layers=True), _CONTRAST, partial(made_up_pairs, generator=generator), copies=2)

    def _adam(self, module: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), betas=_BETAS)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, SmallGenerator]:
        """Release aggregates, which the generator follows; and now and then a gradient of the lower layers."""
        assert isinstance(generator, SmallGenerator)
        average, lower = ema.start(generator).eval(), self.stepped(generator, seed=run.seed).module
        assert isinstance(lower, LowerLayers)
        critic, private, public = Critic(lower), self._adam(lower.halvings), self._adam(generator)
        state = {"critic": critic, "generator": generator, "average": average}
        updates = run.resume(**state, private=private, public=public)
        images, pairs = LabelLoader(data, run.device), PairLoader(data, generator, run.device)
        largest, mechanism = self._of_layers(generator, lower), run.mechanism
        at_once = run.physical_batch_size(largest.copies, largest.bytes_of_one)
        step = partial(mechanism.backward, num_records=data.num_units, physical_batch_size=at_once)
        while not mechanism.finished:
            spent, plan = mechanism.steps_spent, mechanism.plan
            rate = self.optimizer.learning_rate_at(spent / plan.steps)
            private.param_groups[0]["lr"] = rate
            public.param_groups[0]["lr"] = rate / self.optimizer.learning_rate * self.generator_rate
            random = torch.Generator().manual_seed(run.seed + updates)
            updates += 1
            if self.lower_every and (spent + 1) % self.lower_every == 0:
                critic.point(*self._images(generator, random))
                with run.autocast():
                    diagnostics = step(_CONTRAST, lower.train_only(layers=True), load=pairs)
                private.step()
                critic.forget()
            else:
                with run.autocast():
                    diagnostics = step(_ROWS, lower.train_only(layers=False), load=images)
                assert lower.rows.weight.grad is not None
                critic.saw(lower.rows.weight.grad / min(1.0, plan.max_grad_norm))
                self._follow(generator, critic, public, random)
                average.shares.copy_(critic.shares)
                ema.update(average, generator, updates=updates, decay=self.optimizer.ema_decay)
            yield run.took_step(diagnostics, average, learning_rate=rate)
        return average

    def _images(self, generator: SmallGenerator, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return generated images of some classes, as many of each, and these classes."""
        number, device = len(generator.shares), generator.device
        chosen = min(number, max(1, self.batch_size // _FEWEST_OF_CLASS))
        classes, each = torch.randperm(number, generator=random)[:chosen].to(device), self.batch_size // chosen
        latent = torch.randn(chosen * each, self.latent, generator=random).to(device)
        return generator(latent, classes.repeat_interleave(each)), classes

    def _follow(
        self, generator: SmallGenerator, critic: Critic, adam: torch.optim.Adam, random: torch.Generator
    ) -> None:
        """Let the generator take its updates against what was released."""
        parameters = list(generator.parameters())
        for _ in range(self.updates):
            gradients = torch.autograd.grad(critic.distance(*self._images(generator, random)), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            adam.step()

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Try a private step of either kind on made-up images."""
        stepped = self.stepped(generator, seed=run.seed)
        stepped.rehearse(mechanism, run)
        if self.lower_every:
            self._of_layers(generator, stepped.module).rehearse(mechanism, run)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes of an update of the generator; what private steps take is measured."""
        return self.batch_size * 16 * (self.width + 2 * self.discriminator_width) * math.prod(facts.shape[1:])

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless shares of classes are positive and add up to one, and all weights are finite."""
        require_shares(read, where)
        require_finite(read, dict(self.untrained(facts).named_parameters()), where)
