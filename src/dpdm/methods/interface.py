"""What a method, its generator and its run are. A new method is one file that knows this one.

A **method** is a frozen value. It is handed a **run** and yields progress until it returns a **generator**. Whatever
it learns of private images has passed the run's mechanism: a method writes no file, knows no ledger, draws no entropy.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int
from numpy import ndarray
from torch import Tensor, nn

from dpdm.data import ImageDataset
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart, PublicStart, Read, Sizes
from dpdm.privacy import AnyPlan, Earlier, MechanismRun, Noisy, Plan
from dpdm.privacy.diagnostics import Diagnostics
from dpdm.privacy.mechanism import LoadRows
from dpdm.privacy.processes import Processes
from dpdm.privacy.releases import FullSum, PoissonSums
from dpdm.privacy.sums import BoundedSum
from dpdm.types import Images, InputError, whole_number


class ImageGenerator(nn.Module, ABC):
    """What a run releases. Its `state_dict` is all of it: saved, digested, verified and loaded.

    Example:
        >>> isinstance(PriorAlone(prior=Prior(centres=1)), Method), issubclass(ImageGenerator, torch.nn.Module)
        (True, True)
    """

    facts: ImageFacts
    parts: tuple[PublicPart, ...] = ()
    """Public files that drawing needs and that `state_dict` does not hold: whoever loads a release supplies them."""

    @abstractmethod
    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return one image in [-1, 1] for each label. The same `random` gives the same images."""

    def draw_at(
        self, places: Int[Tensor, " batch"], labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return what `draw` does, for images at these places among those of their class in a sample."""
        return self.draw(labels, random=random)

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        first: Tensor = next(iter(self.state_dict().values()))
        return first.device

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """The share of each class among the training images, if the run released it."""
        return None

    @property
    def remark(self) -> str:
        """A remark on these images for people, from released numbers; empty if nothing is odd."""
        return ""

    def supply(self, part: PublicPart, path: Path) -> None:
        """Take one of `parts` from a file with its digest."""
        raise NotImplementedError(f"a {type(self).__name__} has no public parts")

    def shortened(self) -> tuple["ImageGenerator", float]:
        """Return a generator that draws alike in fewer steps, for tries and timing, and how many times fewer."""
        return self, 1.0


@runtime_checkable
class Kept(Protocol):
    """One row of numbers for each private image: secret, and read part by part."""

    def __getitem__(self, images: slice) -> Float32[ndarray, "images columns"]:
        """Return the rows of some images."""
        ...


class Run(Protocol):
    """All that a method can reach of the run it belongs to. Private numbers leave it only through `mechanism`."""

    processes: Processes
    device: torch.device
    seed: int  # of what is public: first weights, the start of a search for centres
    public: ImageDataset | None  # images declared public, for a method that `starts_from_images`
    starts: tuple[PublicStart, ...]  # what `start_folders` hold

    @property
    def mechanism(self) -> MechanismRun:
        """What makes the planned sums."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for calls of a network."""
        ...

    def physical_batch_size(self, copies: int, bytes_of_one: Callable[[], int]) -> int:
        """Return how many examples to take at once, each with so many copies, which keeps so many bytes."""
        ...

    def once(self, name: str, make: Callable[[], BoundedSum]) -> Noisy:
        """Return the planned release `name`: made now, or as it was made before the run was interrupted."""
        ...

    def of_batch(self, name: str, number: int, *, dimensions: int, load: LoadRows) -> Noisy | None:
        """Return sum `number` (from 0) of the planned sums `name` over Poisson batches: made now, or as it was kept.

        None where a crash spent it before it was kept: it is never made again.

        Args:
            name: What the plan calls the sums.
            number: Which of them, one after the other.
            dimensions: Length of each vector.
            load: Maps indices of units, and random bytes, to one vector for each: see `MechanismRun.batch_sum`.
        """
        ...

    def keep(
        self, name: str, images: Images, make: Callable[[Images], Float32[Tensor, "images columns"]], *, made_by: str
    ) -> "Kept":
        """Return one row of numbers for each private image: as kept in private/, or made now and kept there.

        Args:
            name: What the rows are called.
            images: All images of this process.
            make: Returns rows (number, columns) of float32 for so many images; a row depends on its image alone.
            made_by: What `make` is, by name, settings and digest of its weights: rows of another one are not taken.
        """
        ...

    def resume(self, **state: nn.Module | torch.optim.Optimizer) -> int:
        """Load what was saved of these; return how many updates they have seen. They are what is saved from now on."""
        ...

    def require_memory(self, module: nn.Module, bytes_of_one: int = 0) -> None:
        """Raise InputError unless the device has room for a step of `module` on one example, which takes so much."""
        ...

    def took_step(self, diagnostics: Diagnostics, generator: ImageGenerator, *, learning_rate: float) -> Progress:
        """Note a step: losses in private/, ε and pictures in watch/, and a checkpoint now and then."""
        ...

    def made_sum(self, generator: ImageGenerator) -> Progress:
        """Note a noisy sum of a method that takes no steps, and draw what it has come to, into watch/."""
        ...

    def worked(self) -> Progress:
        """Note that work on what was released has gone on: a checkpoint now and then."""
        ...

    def named(self, generator: ImageGenerator) -> tuple[PublicPart, ...] | None:
        """Return the public parts that the run's claim names, as they were when it began; None of a run in memory."""
        ...


def _left_after(earlier: Sequence[Earlier], epsilon: float, dataset_size: int, delta: float) -> float:
    """Return the ε of a Gaussian release that costs `epsilon` together with earlier noisy sums."""
    if not earlier:
        return epsilon
    said: dict[str, Any] = {"relation": earlier[0].relation, "unit": earlier[0].unit}
    rest = Plan(dataset_size=dataset_size, delta=delta, releases=(FullSum(name="rest"),), earlier=earlier, **said)  # type: ignore[arg-type]
    return replace(rest.calibrate(epsilon=epsilon), earlier=()).epsilon()


class Method(ABC):
    """A way from private images to a generator. Every field of a method is public.

    Example:
        >>> [issubclass(each, Method) for each in (Diffusion, PriorAlone, Evolution)]
        [True, True, True]
    """

    kind: ClassVar[str]
    starts_from_images: ClassVar[bool] = False
    """Whether it needs images that are declared public."""

    timed: ClassVar[tuple[str, ...]] = ()
    """The settings that `fitted` chooses, of a method that takes no steps and can fill a given time."""

    @abstractmethod
    def releases(self, budget: Budget) -> tuple[FullSum | PoissonSums, ...]:
        """Return the plan's entries in order. Those without noise all get the same; else one factor scales all.

        Raises:
            InputError: The budget names steps, and this method takes none.
        """

    @abstractmethod
    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> ImageGenerator:
        """Return a generator of the kind that `train` returns.

        Args:
            facts: Shape and classes of the images.
            seed: Seed of its initial weights.
            sizes: Shapes of a file's tensors that follow from noisy sums (default: the largest possible).
        """

    @abstractmethod
    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, ImageGenerator]:
        """Train `generator`, as `untrained` made it. All that depends on `data` has passed `run.mechanism`."""

    def plan(
        self,
        *,
        epsilon: float,
        dataset_size: int,
        delta: float = 1e-5,
        steps: int | None = None,
        expected_batch_size: int | None = None,
        max_grad_norm: float = 1.0,
        **fields: Any,  # noqa: ANN401 (those of `Plan`)
    ) -> Plan:
        """Return the plan of this method that costs `epsilon`.

        Args:
            epsilon: ε of the claim.
            dataset_size: Declared number of records (see `Plan`).
            delta: δ of the claim.
            steps: Number of steps, for methods with steps (default: the method's own).
            expected_batch_size: Mean number of records in a step (default: a sixteenth of the size, from 64 to 2048).
            max_grad_norm: Clipping norm of a step.
            fields: Relation, unit, noise, search and earlier sums, as for `Plan`.

        Raises:
            InputError: The numbers do not fit together, or no amount of noise reaches `epsilon`.
        """
        search = fields.get("search")
        dataset_size = whole_number("dataset_size", dataset_size)
        left = _left_after(fields.get("earlier", ()), epsilon, dataset_size, delta)
        of_one = left if search is None else search.epsilon_of_one(epsilon=left, delta=delta)
        budget = Budget(of_one, delta, dataset_size, steps, expected_batch_size, max_grad_norm)
        asked = Plan(dataset_size=dataset_size, delta=delta, releases=self.releases(budget), **fields)
        return asked.calibrate(epsilon=epsilon)

    def seconds(self, facts: ImageFacts, *, records: int, device: torch.device) -> float:
        """Return the estimated seconds of a run of a `timed` method here, on made-up images; 0 for others."""
        return 0.0

    def fitted(self, facts: ImageFacts, *, records: int, device: torch.device, seconds: float) -> "Method":
        """Return the method with the settings of `timed` that fill so many seconds here, on made-up images.

        Raises:
            InputError: The time is too short.
        """
        raise NotImplementedError(f"{self.kind} has no settings that fill a time")

    def as_begun(self, settings: Mapping[str, Any]) -> "Method":
        """Return the method with the settings of `timed` that a run began with."""
        assert is_dataclass(self)
        return replace(self, **{name: settings[name] for name in self.timed if name in settings})

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the most bytes that a method without a network needs, for so many public and private images."""
        return 0

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Raise InputError for whatever training would refuse, by a try on made-up images before anything is spent."""
        return None

    def require_starts(self, generator: ImageGenerator, starts: Sequence[PublicStart]) -> None:
        """Raise InputError unless the networks in `start_folders` are for this method and for images of its facts."""
        return None

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError unless the method fits images of these facts."""
        return None

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless a run of this plan can produce the tensors of a release's file."""
        return None

    @property
    def start_folders(self) -> tuple[str, ...]:
        """The folders of networks trained on public images; the method begins with one of them."""
        return ()

    @property
    def folders(self) -> tuple[str, ...]:
        """All folders of public networks that the method begins with. Their places stay in `private/`."""
        return self.start_folders

    @property
    def start_digests(self) -> tuple[str, ...]:
        """The SHA-256 of the weights of each, as a release stores it."""
        return ()

    def begun_from(self, folders: Sequence[str]) -> "Method":
        """Return the method of a release with these `folders`, which are their places on this machine."""
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        """The names that a claim gives the public networks of features, or the one that is trained further."""
        return ()

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return these networks with the digests of their weights; raise InputError if one is not there."""
        return ()

    @property
    def code(self) -> Any:  # noqa: ANN401 (a network of one's own)
        """The code of a network from outside the package, if the method has one."""
        return None

    @property
    def foreign(self) -> str | None:
        """The prefix of the names of weights whose code is outside the package, if there are any."""
        return None

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "Method":
        """Return the method in the form that settings store: own networks by class name, starts by theirs."""
        return self

    def answers(self, generator: ImageGenerator) -> Float[Tensor, "made_up channel height width"]:
        """Return the output of a generator with your own network for made-up images."""
        raise NotImplementedError(f"{self.kind} has no network of one's own")

    def with_code(self, network: Any) -> "Method":  # noqa: ANN401
        """Return the method with the code of your own network; raise InputError if it has no such network."""
        raise InputError("this run has no network of one's own: leave out network=")
