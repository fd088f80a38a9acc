"""DP-LFlow: an autoencoder and a flow on its codes. Both are one network, which takes private steps.

Source:
    Jiang & Sun 2023 (TMLR), "DP-LFlow: Differentially Private Latent Flow for Scalable Sensitive Image Generation".
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dpdm.data import ImageDataset
from dpdm.methods import ema
from dpdm.methods.autoencoder import Autoencoder, Coded, CodeLoader, CodeLoss, FlowGenerator
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.loader import random_images
from dpdm.methods.optimizer import Optimizer
from dpdm.methods.possible import require_finite
from dpdm.methods.private_steps import Stepped, TakesSteps, steps_of
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan, MechanismRun, PoissonSums
from dpdm.types import InputError, require_at_most, require_counts, require_within

_LOSS = CodeLoss()
_MOST_WIDTH, _MOST_LATENT, _MOST_COUPLINGS, _MOST_OF_COUPLING = 2**12, 2**12, 32, 2**9


@dataclass(frozen=True, kw_only=True)
class LatentFlow(TakesSteps):
    """Trains an autoencoder, and a flow that learns the codes of each class.

    Args:
        latent: Length of a code.
        encoder_width: Channels of the encoder's first layer.
        width: Width of the decoder.
        couplings: Number of coupling layers of the flow.
        coupling_width: Hidden units of a coupling layer.
        flow_share: Share of the steps that train the flow alone; they come last.
        code_noise: Standard deviation of the noise on a code, whose numbers have mean square one.
        optimizer: Adam for all parts, and the average of decoder and flow, which the run releases.

    Guarantees:
        * A private image has one gradient, of both losses, in a step: it is clipped once, and counted once.
        * How frequent each class is stays private: one network knows all classes.

    Source:
        Jiang & Sun 2023. One gradient instead of two, one network for all classes, codes of one length with noise, and
        steps of the flow alone are ours.

    Example:
        >>> plan = LatentFlow().plan(epsilon=1.0, dataset_size=60000, steps=300)
        >>> [(release.name, release.count) for release in plan.releases]
        [('steps', 300)]
    """

    kind: ClassVar[str] = "flow"
    latent: int = 16
    encoder_width: int = 8
    width: int = 64
    couplings: int = 4
    coupling_width: int = 32
    flow_share: float = 0.4
    code_noise: float = 0.2
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=4e-3, ema_decay=0.98))

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("encoder_width", "couplings", "coupling_width")}
        require_counts(latent=self.latent, width=self.width, **counts)
        require_within(2, _MOST_LATENT, latent=self.latent)
        require_within(8, _MOST_WIDTH, width=self.width)
        require_at_most(_MOST_WIDTH, encoder_width=self.encoder_width)
        require_at_most(_MOST_COUPLINGS, couplings=self.couplings)
        require_at_most(_MOST_OF_COUPLING, coupling_width=self.coupling_width)
        require_within(0, 0.9, flow_share=self.flow_share)
        require_within(0, 10, code_noise=self.code_noise)
        if not isinstance(self.optimizer, Optimizer):
            raise InputError(f"optimizer must be Optimizer, not {type(self.optimizer).__name__}")

    def releases(self, budget: Budget) -> tuple[PoissonSums, ...]:
        """Return the steps, of autoencoder and flow together."""
        return steps_of(budget)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> FlowGenerator:
        """Return a decoder with initial weights, and a flow that changes nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            of_flow = {"couplings": self.couplings, "coupling_width": self.coupling_width}
            return FlowGenerator(facts, latent=self.latent, width=self.width, **of_flow)

    def stepped(self, generator: ImageGenerator, *, seed: int = 0) -> Stepped:
        """Return what private steps train: the generator, behind an encoder with initial weights."""
        assert isinstance(generator, FlowGenerator)
        facts, device = generator.facts, generator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            network = Autoencoder(generator, width=self.encoder_width, code_noise=self.code_noise).to(device)
        return Stepped(network, _LOSS, lambda number: Coded(*random_images(number, facts, self.latent, device)))

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, FlowGenerator]:
        """Select, encode, clip, add noise, update, average."""
        assert isinstance(generator, FlowGenerator)
        stepped = self.stepped(generator, seed=run.seed)
        network = stepped.module
        assert isinstance(network, Autoencoder)
        average, adam = ema.start(network).eval(), torch.optim.Adam(network.parameters())
        updates = run.resume(network=network, average=average, optimizer=adam)
        mechanism, load = run.mechanism, CodeLoader(data, self.latent, run.device)
        at_once = run.physical_batch_size(stepped.copies, stepped.bytes_of_one)
        while not mechanism.finished:
            alone, part = self._phase(mechanism.steps_spent, mechanism.plan.steps)
            if alone:
                network.keep_codes(average)
            rate = self.optimizer.learning_rate_at(part)
            adam.param_groups[0]["lr"] = rate
            with run.autocast():
                diagnostics = mechanism.backward(
                    _LOSS, network, num_records=data.num_units, load=load, physical_batch_size=at_once
                )
            adam.step()
            updates += 1
            ema.update(average, network, updates=updates, decay=self.optimizer.ema_decay)
            yield run.took_step(diagnostics, average.generator, learning_rate=rate)
        return average.generator

    def _phase(self, spent: int, steps: int) -> tuple[bool, float]:
        """Return whether the flow trains alone by now, and how much of that time, or of the time before, is over."""
        together = round((1 - self.flow_share) * steps)
        return (False, spent / together) if spent < together else (True, (spent - together) / (steps - together))

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Try a private step of all, and one of the flow alone, on made-up images."""
        stepped = self.stepped(self.untrained(generator.facts).to(run.device))  # another one, of which parts will stay
        stepped.rehearse(mechanism, run)
        assert isinstance(stepped.module, Autoencoder)
        stepped.module.keep_codes(stepped.module)
        stepped.rehearse(mechanism, run)

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless all weights are finite."""
        require_finite(read, dict(self.untrained(facts).named_parameters()), where)
