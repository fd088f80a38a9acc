"""Arrays in, arrays out, in three lines: a `Trainer` with settings chosen from declared facts alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpdm.config import Privacy
from dpdm.data import ImageDataset, group_indices
from dpdm.diffusion import DenoisingLoss
from dpdm.methods import Diffusion, PriorAlone
from dpdm.networks import CompactUNet, Network, OwnNetwork
from dpdm.runs.release import Release
from dpdm.runs.trainer import Trainer
from dpdm.types import Images, Labels


@dataclass(frozen=True, kw_only=True)
class Synthesizer:
    """Fit a private generator to arrays.

    Args:
        epsilon: ε of the claim.
        num_classes: Number of classes that labels may have: a declaration, never derived from private labels.
        name: Name of the images in release and ledger. Images of other people need another name.
        dataset_size: A public figure for the number of images, or of groups. The claim is then about adding or removing
            one. None takes the exact number as public: the claim is about blanking one out.
        delta: δ of the claim.
        steps: Number of noisy gradients. More steps cost time, and have more noise each. 0 leaves the prior alone.
        expected_batch_size: Mean number of images in a step (default: a sixteenth of the size, from 64 to 2048).
        noise_multiplicity: Noisy copies of an image, or of images of a group, in one step.
        network: The network to train, as for `Diffusion`.
        run: A folder to keep the run in, so that it can be resumed.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
        >>> fitted = Synthesizer(epsilon=1.0, delta=1e-3, steps=0).fit(images)
        >>> fitted.sample(5, seed=0)[0].shape
        (5, 8, 8, 1)
    """

    epsilon: float
    num_classes: int = 0
    name: str = "images"
    dataset_size: int | None = None
    delta: float = 1e-5
    steps: int = 500
    expected_batch_size: int | None = None
    noise_multiplicity: int = 8
    network: Network | OwnNetwork = field(default_factory=CompactUNet)
    run: Path | str | None = None

    def fit(
        self,
        images: Images,
        labels: Labels | None = None,
        groups: Sequence[object] | NDArray[np.generic] | None = None,
    ) -> Release:
        """Train on `uint8` images (number, height, width[, channel]) and return what may be published.

        Args:
            images: The images.
            labels: Their classes, integers (number,).
            groups: The group of each image, integers or words (number,), such as the person. The claim is then about a
                group. None makes each image the unit of the claim.

        Raises:
            InputError: The arrays or the settings do not fit. One line says which and why.
        """
        data = ImageDataset(
            images=np.asarray(images),
            labels=None if labels is None else np.asarray(labels),
            num_classes=self.num_classes,
            groups=None if groups is None else group_indices(groups, "groups"),
            name=self.name,
        )
        loss = DenoisingLoss(noise_multiplicity=self.noise_multiplicity)
        method = Diffusion(network=self.network, loss=loss) if self.steps else PriorAlone()
        privacy = Privacy(
            epsilon=self.epsilon,
            delta=self.delta,
            dataset_size=self.dataset_size,
            expected_batch_size=self.expected_batch_size if self.steps else None,
            steps=self.steps or None,
        )
        plan = privacy.plan(method, lambda: data.num_units, unit="image" if groups is None else "group")
        return Trainer(method=method, plan=plan, run=self.run).fit(data)
