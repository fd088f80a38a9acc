"""A classifier while it learns, which may be anybody's own: whatever it gives that is none is refused in one line."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dpdm.evaluation.checks import check_text, check_value, kind_of
from dpdm.evaluation.classifiers import Classifier, ImageShape
from dpdm.types import Images, InputError, Labels, images_to_tensor, refusing

_PHYSICAL_BATCH_SIZE = 1000  # images classified at once when nothing is learnt
_CPU = torch.device("cpu")


def check_classifiers(classifiers: Mapping[str, Classifier]) -> None:
    """Raise InputError unless these are classifiers by names that can be printed and told apart."""
    if not isinstance(classifiers, Mapping) or not classifiers:
        raise InputError(f"classifiers must be a dict from names to classifiers, not {kind_of(classifiers)}")
    seen: set[str] = set()
    for name, classifier in classifiers.items():
        check_text("name of a classifier", name)
        plain = unicodedata.normalize("NFKC", name).casefold().strip()
        if plain in seen:
            raise InputError(f"two classifiers have names that look alike: {name!r}")
        seen.add(plain)
        check_value(f"classifier {name!r}", classifier, "a value such as CNN()")


class Pupil:
    """One classifier while it learns, with the weights of its best epoch so far.

    Args:
        name: Of the classifier.
        classifier: Its recipe.
        shape: Of an image.
        num_classes: How many classes there are.
        average: Decay of the average of its weights that is judged; 0 judges the weights themselves.
        device: Where it learns.

    Raises:
        InputError: Its recipe builds no module, or one with nothing to learn with.
    """

    def __init__(
        self,
        name: str,
        classifier: Classifier,
        shape: ImageShape,
        num_classes: int,
        *,
        average: float = 0.0,
        device: torch.device = _CPU,
    ) -> None:
        with refusing(f"build of classifier {name!r} failed"):
            module: object = classifier.build(shape, num_classes)
        if not isinstance(module, nn.Module):
            raise InputError(f"build of classifier {name!r} must return a torch.nn.Module, not {kind_of(module)}")
        if not any(weight.requires_grad for weight in module.parameters()):
            raise InputError(f"classifier {name!r} has no weight to be trained")
        self.name, self.module, self.num_classes, self.device = name, module.to(device), num_classes, device
        self.optimizer = torch.optim.Adam(module.parameters())
        self.best_epoch, self.best_accuracy = 0, -1.0
        self._best_weights: dict[str, Tensor] = {}
        self._decay, self._updates = average, 0
        self._average = [weight.detach().clone() for weight in module.parameters()] if average else []

    def logits(self, x: Float[Tensor, "images channel height width"]) -> Float[Tensor, "images classes"]:
        """Return one number for each image and class; raise InputError if the module gives anything else."""
        with refusing(f"classifier {self.name!r} on images of shape {tuple(x.shape)} failed"):
            found: object = self.module(x.to(self.device))
        wanted = (len(x), self.num_classes)
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != wanted:
            wrong = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else kind_of(found)
            raise InputError(f"classifier {self.name!r} must give floating-point logits of shape {wanted}, not {wrong}")
        return found

    def add_gradients(self, x: Float[Tensor, "images channel height width"], y: Int64[Tensor, " images"]) -> None:
        """Add the gradients of one batch's cross entropy to `.grad`."""
        logits = self.logits(x)
        with refusing(f"classifier {self.name!r}, learning from {len(x)} images failed"):
            torch.autograd.backward(nn.functional.cross_entropy(logits, y.to(self.device)))

    def learn(
        self, x: Float[Tensor, "images channel height width"], y: Int64[Tensor, " images"], learning_rate: float
    ) -> None:
        """Make one update on a batch."""
        self.module.train()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        self.add_gradients(x, y)
        self.optimizer.step()
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        with torch.no_grad():
            for mean, weight in zip(self._average, self.module.parameters(), strict=False):
                mean.lerp_(weight, 1 - decay)

    @torch.inference_mode()
    def answers(self, images: Images) -> Labels:
        """Return the class of each image."""
        self.module.eval()
        answers = []
        for start in range(0, len(images), _PHYSICAL_BATCH_SIZE):
            logits = self.logits(images_to_tensor(images[start : start + _PHYSICAL_BATCH_SIZE]))
            # A loss that was not finite shows up here too: the weights never recover from its gradient.
            if not torch.isfinite(logits).all():
                raise InputError(f"{self.name} diverged, its outputs are not finite: lower the learning rate")
            answers.append(logits.argmax(dim=1))
        return np.asarray(torch.cat(answers).cpu().numpy())

    def remember_if_best(self, epoch: int, images: Images, labels: Labels) -> None:
        """Keep the weights if no earlier epoch did better on these images."""
        with self._judged():
            accuracy = float((self.answers(images) == labels).mean())
            # Of equals the latest: where a small held-out part is soon answered perfectly, it has learnt the most.
            if accuracy >= self.best_accuracy:
                self.best_epoch, self.best_accuracy = epoch, accuracy
                self._best_weights = {name: weight.clone() for name, weight in self.module.state_dict().items()}

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Put the average in the place of the weights, if there is one, and these back afterwards."""
        weights = [*self.module.parameters()] if self._average else []
        own = [weight.detach().clone() for weight in weights]
        try:
            _copy(self._average, weights)
            yield
        finally:
            _copy(own, weights)

    def recall_best(self) -> "Pupil":
        """Go back to the weights of the best epoch."""
        self.module.load_state_dict(self._best_weights)
        return self


def check_learns(
    spare: Pupil, x: Float[Tensor, "images channel height width"], y: Int64[Tensor, " images"], *, alone: bool
) -> None:
    """Raise InputError unless a pupil, who is of no use afterwards, takes these few images and can learn from them.

    `alone` is whether it will have to learn from one image by itself, which batch normalisation cannot.
    """
    spare.module.eval()
    if not torch.isfinite(spare.logits(x[:1])).all():
        raise InputError(f"classifier {spare.name!r} gives logits that are not finite before it has learnt anything")
    spare.add_gradients(x, y)
    if all(weight.grad is None for weight in spare.module.parameters()):
        raise InputError(f"classifier {spare.name!r} learns nothing: no weight has a gradient")
    if alone:
        spare.module.train()
        spare.add_gradients(x[:1], y[:1])


@torch.no_grad()
def _copy(values: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for value, weight in zip(values, weights, strict=True):
        weight.copy_(value)
