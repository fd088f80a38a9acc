"""One run on several processes, as torchrun starts them: whose records are whose, and how their sums become one.

Each process selects among its own records, by its own randomness, which is the same as selecting among all of them.
The first process adds noise, once, and keeps the journal; the noisy sum is then everyone's.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed, nn

from dpdm.types import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of this run, seen from one of them; by default it is alone.

    Guarantees:
        * Every record belongs to exactly one process, whatever their number.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> "Processes":
        """Return the group that torch.distributed has been told of, or a process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(rank=distributed.get_rank(), size=distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that adds noise, keeps the journal and writes files."""
        return self.rank == 0

    def shard(self, records: int) -> range:
        """Return the indices of this process's records among `records`."""
        return range(self.rank, records, self.size)

    def sum(self, value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the sum of all processes' tensors, the same on each."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def from_first(self, value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the first process's tensor; the others' give shape and type only."""
        if self.size > 1:
            value = value.clone()
            distributed.broadcast(value, src=0)
        return value

    def object_from_first(self, value: T) -> T:
        """Return the first process's object: of this run's own making, since it is pickled on the way."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, state: Iterable[nn.Module | torch.optim.Optimizer]) -> None:
        """Give all processes what the first has in these: it alone has a checkpoint."""
        if self.size == 1:
            return
        for part in state:
            if isinstance(part, nn.Module):
                for tensor in part.state_dict().values():
                    tensor.copy_(self.from_first(tensor))
            else:
                part.load_state_dict(self.object_from_first(part.state_dict()))

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any process: what all must agree on, such as to stop."""
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def in_turn(self, mine: list[T]) -> list[T]:
        """Return, on the first process, the items of all in turn: one of each, then the next of each."""
        if self.size == 1:
            return mine
        gathered: list[list[T]] = [[] for _ in range(self.size)]
        distributed.gather_object(mine, gathered if self.first else None, dst=0)
        longest = max(map(len, gathered))
        return [items[turn] for turn in range(longest) for items in gathered if turn < len(items)]

    @contextmanager
    def refused_together(self) -> Iterator[None]:
        """Raise, on all processes, the InputError of whoever was refused within: none waits for one that is gone."""
        refusal: InputError | None = None
        try:
            yield
        except InputError as error:
            refusal = error
        if self.size > 1:
            said: list[str | None] = [None] * self.size
            distributed.all_gather_object(said, None if refusal is None else str(refusal))
            refusal = refusal or next((InputError(text) for text in said if text is not None), None)
        if refusal is not None:
            raise refusal

    def require_same(self, value: str, what: str) -> None:
        """Raise InputError, on all processes, unless `value` is the same on all of them."""
        self.require(self.object_from_first(value) == value, what)

    def require(self, same: bool, what: str) -> None:
        """Raise InputError, on all processes, unless each has found itself the same as the first."""
        if self.any(not same):
            raise InputError(f"the processes of this run differ in {what}: start all by the same command")
