"""How candidates of private evolution vary, and what a vote sees of them. Nothing here is private but kept rows."""

import torch
from jaxtyping import Float, Float32, Float64, Int, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from dpdm.data import ImageDataset
from dpdm.methods.embedding import Embedding, Space, parts_of
from dpdm.methods.interface import Kept, Run
from dpdm.methods.nearest import neighbours, whole_features
from dpdm.methods.populations import Pool, Population
from dpdm.types import Images

_TURNED, _SHEARED = 0.3, 0.3  # radians, and a shear, by which an image of full strength is changed at most
_SCALED, _STRETCHED = 0.2, 0.2  # logarithms of size, and of the ratio of its sides
_MOVED = 0.1  # halves of a side
_FINENESS = 2**11  # of features: `Space.unit` has that, and whole numbers do


class Looks:
    """By what images are compared: pixels, as whole numbers, or public features.

    Both are on a grid on which distances are exact, so that a vote depends on one private image alone.
    """

    def __init__(self, run: Run, embedding: Embedding | None, pool: Pool, shape: tuple[int, int, int]) -> None:
        self._run, self._embedding, self._space = run, embedding, Space(torch.zeros(0), 0.0, torch.zeros(0))
        if embedding is None:
            self.of_pool = whole_features(pool.images)
            return
        self._compute = embedding.compute(shape)
        if run.public is not None:
            self.of_pool, self._space = embedding.of_public(run)
        else:
            self.of_pool = self._raw(pool.images)
            self._space = run.processes.object_from_first(Space.spanned_by(self.of_pool, pool.labels))
            for part in parts_of(len(self.of_pool)):
                self.of_pool[part] = self._space.unit(self.of_pool[part])

    def of_images(self, images: Images) -> Float32[Tensor, "images features"]:
        """Return a row for each public image."""
        return whole_features(images) if self._embedding is None else self._space.unit(self._raw(images))

    def of_private(self, data: ImageDataset) -> Kept:
        """Return the rows of private images, as the run keeps them."""
        if self._embedding is None:
            return self._run.keep("pixels", data.images, whole_features, made_by="pixels, whole numbers")
        return self._embedding.of_private(self._run, data, self._space)

    def exact(self, rows: Float32[Tensor, "*images features"]) -> Float[Tensor, "*images features"]:
        """Return rows in the precision in which their distances are exact (see `nearest.squared_distances`)."""
        return rows.double() if self._embedding is None else rows

    def _raw(self, images: Images) -> Float32[Tensor, "images features"]:
        """Return features before whitening; each process computes its part."""
        mine = [*self._run.processes.shard(len(images))]
        parts = [self._compute(images[mine[part]]) for part in parts_of(len(mine))]
        own = torch.cat(parts) if parts else self._compute(images[:1])[:0]
        rows = torch.zeros(len(images), own.shape[1])
        rows[mine] = own
        return self._run.processes.sum(rows)


class Variations:
    """How candidates begin, and what children they have.

    A child is made of one of the public neighbours of what its parent is made of. With `strength` it is moved, turned,
    stretched and sheared beside its parent, too, in colour also mirrored.
    """

    def __init__(self, pool: Pool, looks: Looks, run: Run, *, strength: float) -> None:
        self._pool, self._looks, self._run = pool, looks, run
        self._random = torch.Generator().manual_seed(run.seed)
        self.strength = strength
        self.reach = [1.0] * len(pool.of_class)  # public neighbours that come into question, for each class

    def first(self, number: int) -> Population:
        """Return so many candidates of each class, at random."""
        self.reach = [len(known) / number for known in self._pool.of_class]
        drawn = [known[torch.randint(len(known), (number,), generator=self._random)] for known in self._pool.of_class]
        still = torch.eye(2, 3).repeat(len(drawn), number, 1, 1) if self.strength else None
        return self._moved(Population(torch.stack(drawn), still))

    def narrow(self, shares: list[float]) -> None:
        """Let children be more alike, once only such a share of each class's candidates is still in question.

        As many public images stand behind a candidate as there are for each that is likely to be drawn again.
        """
        self.reach = [max(1.0, reach * share) for reach, share in zip(self.reach, shares, strict=True)]
        self.strength /= 2

    def children(self, parents: Population, weights: Float64[Tensor, "class candidate"] | None = None) -> Population:
        """Return as many candidates as there are parents: of those drawn by their weights, or one of each."""
        made_of, moves = [], []
        for label, known in enumerate(self._pool.of_class):
            drawn = self.drawn_again(parents.made_of.shape[1], None if weights is None else weights[label])
            reach = round(self.reach[label])
            made_of.append(neighbours(self._looks.of_pool, known, parents.made_of[label][drawn], reach, self._random))
            moves.append(torch.eye(2, 3) if parents.moves is None else parents.moves[label][drawn])
        return self._moved(Population(torch.stack(made_of), None if parents.moves is None else torch.stack(moves)))

    def drawn_again(self, number: int, weights: Float64[Tensor, " candidates"] | None) -> Int[Tensor, " candidates"]:
        """Return the parents of a class's `number` children: drawn by their weights, or one child of each."""
        if weights is None:
            return torch.arange(number)
        return torch.multinomial(weights, number, True, generator=self._random)

    def images(self, population: Population) -> UInt8[Tensor, "class candidate height width channel"]:
        """Return what candidates look like; the same on all processes."""
        if population.drawn is not None:
            return population.drawn
        flat = population.made_of.flatten()
        images = torch.from_numpy(self._pool.images[flat.numpy()])
        if population.moves is not None:
            moves = population.moves.flatten(0, 1)
            for part in parts_of(len(images)):
                x = images[part].movedim(-1, 1).float()
                grid = affine_grid(moves[part], [*x.shape], align_corners=False)
                x = grid_sample(x, grid, padding_mode="border", align_corners=False)
                images[part] = x.round().clamp(0, 255).byte().movedim(1, -1)
            images = self._run.processes.from_first(images)
        return images.view(*population.made_of.shape, *images.shape[1:])

    def looks(self, population: Population, *, ahead: int) -> Float32[Tensor, "class candidate features"]:
        """Return rows of candidates: their own, or the mean of those of so many children of each."""
        if not ahead:
            return self._rows(population)
        total = sum((self._rows(self.children(population)) for _ in range(ahead)), torch.zeros(()))
        return (total * (_FINENESS / ahead)).round() / _FINENESS

    def _rows(self, population: Population) -> Float32[Tensor, "class candidate features"]:
        if population.moves is None and population.drawn is None:
            return self._looks.of_pool[population.made_of]
        images = self.images(population).flatten(0, 1).numpy()
        return self._looks.of_images(images).view(*population.made_of.shape, -1)

    def _moved(self, population: Population) -> Population:
        """Return candidates moved at random, as far as the strength goes; the same on all processes."""
        from_first = self._run.processes.from_first
        population = population._replace(made_of=from_first(population.made_of))
        if population.moves is None:
            return population
        number = population.made_of.numel()

        def within(most: float) -> Float32[Tensor, " candidates"]:
            return self.strength * most * (2 * torch.rand(number, generator=self._random) - 1)

        turned, sheared, size, ratio = (within(most) for most in (_TURNED, _SHEARED, _SCALED, _STRETCHED))
        wide, high = (size + ratio / 2).exp(), (size - ratio / 2).exp()
        if self._pool.images.shape[3] > 1:
            wide = torch.where(torch.rand(number, generator=self._random) < self.strength / 2, -wide, wide)
        across = (turned.cos() * wide, (turned.cos() * sheared - turned.sin()) * high, within(_MOVED))
        along = (turned.sin() * wide, (turned.sin() * sheared + turned.cos()) * high, within(_MOVED))
        change = torch.stack([torch.stack(across, 1), torch.stack(along, 1)], 1).view_as(population.moves)
        turn, shift = population.moves[..., :2], population.moves[..., 2:]
        moves = torch.cat([turn @ change[..., :2], turn @ change[..., 2:] + shift], -1)
        return population._replace(moves=from_first(moves))
