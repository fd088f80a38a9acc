"""GS-WGAN: each shard of the images has a critic of its own, and only noisy sums of their gradients reach a generator.

Source:
    Chen, Orekondy & Fritz 2020 (NeurIPS, arXiv 2006.08265).
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods import ema
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.loader import random_images
from dpdm.methods.optimizer import Optimizer
from dpdm.methods.possible import require_finite
from dpdm.methods.private_steps import Stepped, TakesSteps
from dpdm.methods.shards import Critics, Fakes, ShardLoader, Upstream, UpstreamLoss, members, seeded
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan, MechanismRun, ShardSums
from dpdm.types import InputError, require_at_most, require_counts, require_counts_or_none, require_within

_MOST_WIDTH, _MOST_WORK, _MOST_SHARDS = 2**12, 10**5, 10**6
_STEPS, _PART = 500, 10  # unless somebody says otherwise: steps, and shards for each of a step
_BETAS = (0.5, 0.9)  # of Adam: a game needs less memory than a descent
_LOSS = UpstreamLoss()


@dataclass(frozen=True, kw_only=True)
class SanitizedGAN(TakesSteps):
    """A generator against many critics, each of which sees one shard of the private images.

    Args:
        shards: How many there are; each step has privacy.expected_batch_size of them on average (default: a tenth).
        width: Of the generator.
        latent: Random numbers that an image is made of.
        discriminator_width: Channels of a critic's first layer.
        side: Pixels of the shorter side of what critics see: of larger images they see means of squares.
        batch_size: Generated images whose gradients are stacked, and images of a critic's update.
        critic_updates: Of a critic each time it is asked.
        warm_updates: Of each critic before the first step; they cost time, and no privacy.
        generator_rate: Adam's, of the generator; it falls by `optimizer`, as a part of its learning rate.
        optimizer: Of the critics, whose rate is constant; and the average of the generator, which is what is released.

    Guarantees:
        * An image, or a group of them, lies in one shard, whatever others there are.
        * The vector of a shard, gradients of all stacked images together, is clipped to half of privacy.max_grad_norm.
          So one image, which may turn its critic into any other, moves a noisy sum by max_grad_norm at most.
        * The generator follows from noisy sums alone. No critic is ever released; all are kept in `private/`.

    Source:
        Chen, Orekondy & Fritz 2020. Poisson selection, shards by a hash, half of the norm, coarse images are ours.

    Example:
        >>> plan = SanitizedGAN(shards=200).plan(epsilon=1.0, dataset_size=60000, steps=300, expected_batch_size=10)
        >>> plan.sample_rate, plan.poisson[0].radius
        (0.05, 0.5)
    """

    kind: ClassVar[str] = "sanitized-gan"
    shards: int = 500
    width: int = 128
    latent: int = 32
    discriminator_width: int = 8
    side: int = 14
    batch_size: int = 20
    critic_updates: int = 2
    warm_updates: int = 8
    generator_rate: float = 3e-3
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=4e-3, ema_decay=0.95))

    def __post_init__(self) -> None:
        counts = ("shards", "width", "latent", "discriminator_width", "side", "batch_size", "critic_updates")
        require_counts(**{name: getattr(self, name) for name in counts})
        require_counts_or_none(warm_updates=self.warm_updates)
        require_at_most(_MOST_SHARDS, shards=self.shards)
        require_within(8, _MOST_WIDTH, width=self.width, side=self.side)
        require_at_most(_MOST_WIDTH, latent=self.latent, discriminator_width=self.discriminator_width)
        updates = {"critic_updates": self.critic_updates, "warm_updates": self.warm_updates}
        require_at_most(_MOST_WORK, batch_size=self.batch_size, **updates)
        require_within(1e-6, 0.1, generator_rate=self.generator_rate)
        if not isinstance(self.optimizer, Optimizer):
            raise InputError(f"optimizer must be Optimizer, not {type(self.optimizer).__name__}")

    def releases(self, budget: Budget) -> tuple[ShardSums, ...]:
        """Return the generator's steps: sums over shards."""
        if budget.steps == 0:
            raise InputError("privacy.steps = 0 trains no network: give steps")
        if self.shards > budget.dataset_size:
            raise InputError(f"shards = {self.shards} are more than the {budget.dataset_size} records: give fewer")
        batch = budget.expected_batch_size or max(1, self.shards // _PART)
        count = _STEPS if budget.steps is None else budget.steps
        given = {"shards": self.shards, "expected_batch_size": batch, "max_norm": budget.max_grad_norm}
        return (ShardSums(count=count, **given),)  # type: ignore[arg-type]

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> SmallGenerator:
        """Return a generator with first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallGenerator(facts, latent=self.latent, width=self.width, counted=False)

    def _critics(self, generator: SmallGenerator, *, seed: int, number: int) -> Critics:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            sizes = {"width": self.discriminator_width, "side": self.side}
            critics = Critics(generator.facts, number=number, rate=self.optimizer.learning_rate, **sizes)
        return critics.to(generator.device)

    def stepped(self, generator: ImageGenerator, *, seed: int = 0) -> Stepped:
        """Return what private steps are taken with: generated images, and one critic that nobody's images have met."""
        assert isinstance(generator, SmallGenerator)
        critics = self._critics(generator, seed=seed, number=1)
        adam = torch.optim.Adam(generator.parameters(), betas=_BETAS)
        fakes = Fakes(self.batch_size, critics.shape).to(generator.device)

        def made_up(number: int) -> Upstream:
            rows, (images, labels, _) = [], random_images(self.batch_size, generator.facts, 1, generator.device)
            with torch.autocast(generator.device.type, enabled=False):  # as in a run, where another thread loads
                for row in range(number):
                    for _ in range(self.critic_updates):
                        critics.learn(0, images, labels, generator, seeded(row))
                    rows.append(critics.ask(0, fakes.images, labels))
            return Upstream(torch.stack(rows))

        def follow() -> None:
            self._follow(generator, fakes, self._made(generator, critics, seed=seed)[0], adam)

        fakes.images.grad = torch.zeros_like(fakes.images)
        return Stepped(fakes, _LOSS, made_up, follow=follow)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, SmallGenerator]:
        """Let critics of some shards learn; clip, sum and hide what they say; and let the generator follow that."""
        assert isinstance(generator, SmallGenerator)
        average, critics = ema.start(generator).eval(), self._critics(generator, seed=run.seed, number=self.shards)
        fakes = Fakes(self.batch_size, critics.shape).to(run.device)
        adam, mechanism = torch.optim.Adam(generator.parameters(), betas=_BETAS), run.mechanism
        updates = run.resume(shards=critics, generator=generator, average=average, adam=adam)
        radius, of = mechanism.plan.poisson[0].radius, members(data, shards=self.shards, seed=run.seed)
        length = radius if math.isfinite(radius) else 1.0  # infinite without a claim
        begun = self._made(generator, critics, seed=run.seed)
        loader = ShardLoader(data, of, critics, generator, begun, length, self.critic_updates, run.device)
        at_once = run.physical_batch_size(1, lambda: 8 * fakes.images.nbytes)
        step = partial(mechanism.backward, _LOSS, fakes, num_records=self.shards, physical_batch_size=at_once)
        if not updates:
            loader.warm(self.warm_updates, seed=run.seed)
        while not mechanism.finished:
            part = self.optimizer.learning_rate_at(mechanism.steps_spent / mechanism.plan.steps)
            adam.param_groups[0]["lr"] = rate = part / self.optimizer.learning_rate * self.generator_rate
            made, labels = self._made(generator, critics, seed=run.seed + 2 + updates)
            load = replace(loader, made=(made.detach(), labels))
            diagnostics = step(load=load)
            self._follow(generator, fakes, made, adam)
            updates += 1
            ema.update(average, generator, updates=updates, decay=self.optimizer.ema_decay)
            yield run.took_step(diagnostics, average, learning_rate=rate)
        return average

    def _made(self, generator: SmallGenerator, critics: Critics, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return generated images as critics see them, of all classes in turn, and these classes."""
        random, classes = seeded(seed), max(1, generator.facts.num_classes)
        first = int(torch.randint(classes, (), generator=random))
        labels = ((torch.arange(self.batch_size) + first) % classes).to(generator.device)
        latent = torch.randn(len(labels), self.latent, generator=random).to(labels.device)
        return critics.see(generator(latent, labels)), labels

    def _follow(self, generator: SmallGenerator, fakes: Fakes, made: Tensor, adam: torch.optim.Adam) -> None:
        """Let the generator take a step along the noisy gradient of its images."""
        parameters = list(generator.parameters())
        gradients = torch.autograd.grad(made, parameters, fakes.images.grad)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Try a private step on made-up images; raise InputError for several processes."""
        if run.processes.size > 1:
            raise InputError(f"the method {self.kind} keeps all critics in one process: start it without torchrun")
        self.stepped(generator, seed=run.seed).rehearse(mechanism, run)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes of all critics, with a checkpoint of them, and of an update of one."""
        with torch.device("meta"):
            critics = self._critics(self.untrained(facts), seed=0, number=self.shards)
        own = 2 * sum(each.nbytes for each in critics.buffers())
        return own + 8 * self.batch_size * 16 * (self.width + self.discriminator_width) * math.prod(facts.shape[1:])

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless all weights are finite."""
        require_finite(read, dict(self.untrained(facts).named_parameters()), where)
