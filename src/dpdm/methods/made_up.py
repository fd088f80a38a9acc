"""What a denoiser does is tried on made-up images, before any record is touched. No function here is given records."""

import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from dpdm.diffusion import DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.values import ImageFacts
from dpdm.networks.checkpointing import keeping_all
from dpdm.privacy import AnyPlan, MechanismRun
from dpdm.types import InputError, refusing

_COPIES = 2  # noisy copies of an example: more would take long, and are told from two by nothing
_ROWS = 6  # in all, unless three examples have more


def require_trainable(
    loss: DenoisingLoss,
    denoiser: PreconditionedDenoiser,
    facts: ImageFacts,
    plan: AnyPlan,
    mechanism: MechanismRun,
    run: Run,
) -> None:
    """Raise InputError if no step can be taken: for want of gradients or memory, or for what the mechanism refuses."""
    with refusing("the network fails on made-up images"):
        _require_gradients(loss, denoiser, facts)
        run.require_memory(denoiser, bytes_of_one(loss, denoiser, facts))
        few = replace(loss, noise_multiplicity=min(_COPIES, loss.noise_multiplicity))
        mechanism.rehearse(loss, denoiser, made_up_batch(few, denoiser, facts, grouped=plan.unit == "group"))
        _require_blank(few, denoiser, facts)


@torch.no_grad()
def require_images_by(generator: ImageGenerator, name: str) -> None:
    """Raise InputError unless a sampler, called `name`, makes an image."""
    device = generator.device
    with refusing(f"{name} fails on made-up images"):
        labels = torch.zeros(1, dtype=torch.long, device=device)
        images = generator.draw(labels, random=torch.Generator(device).manual_seed(0))
        if images.shape != (1, *generator.facts.shape):
            shapes = (1, *generator.facts.shape), tuple(images.shape)
            raise InputError(f"a sampler must return images of shape {shapes[0]}, not {shapes[1]}")


def made_up_batch(
    loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts, *, grouped: bool = False
) -> NoisyBatch:
    """Return noisy copies of images that nobody took: black, white, and random pixels, with classes of all kinds.

    They are fixed: whether a run may begin is not left to chance.
    """
    generator = torch.Generator().manual_seed(0)
    examples = max(3, _ROWS // loss.noise_multiplicity)
    x = torch.randint(256, (examples, *facts.shape), generator=generator).float().div(127.5).sub(1)
    x[0], x[1] = -1, 1
    copies, null = loss.noise_multiplicity, facts.num_classes
    last = null if loss.label_dropout or not null else null - 1
    labels = torch.linspace(0, last, examples * copies).round().long()
    labels = labels[torch.randperm(len(labels), generator=generator)].view(examples, copies)
    batch = replace(loss, label_dropout=0.0).draw(  # of labels that are given
        x[:, None].expand(-1, copies, *facts.shape) if grouped else x,
        labels,
        null_label=null,
        noise_levels=denoiser.preconditioning.noise_levels,
        random_bytes=random.Random(0).randbytes,
    )
    device = next(iter(denoiser.state_dict().values())).device
    return NoisyBatch(*(t.to(device) for t in batch))


def bytes_of_one(loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts) -> int:
    """Return the bytes that one example keeps for its gradient, and those of the gradient.

    Passes with one noisy copy and with two tell what each further one takes, so that this needs little itself.
    """
    device = next(denoiser.parameters()).device

    def kept(copies: int) -> int:
        few = replace(loss, noise_multiplicity=copies)
        batch = few.draw(
            torch.zeros(1, *facts.shape, device=device),
            torch.zeros(1, dtype=torch.long, device=device),
            null_label=facts.num_classes,
            noise_levels=denoiser.preconditioning.noise_levels,
            random_bytes=os.urandom,
        )
        return bytes_for_backward(lambda: few(denoiser, batch), denoiser)

    one = kept(1)
    each = kept(2) - one if loss.noise_multiplicity > 1 else 0
    of_gradient = sum(4 * p.numel() for p in denoiser.parameters() if p.requires_grad)
    return one + (loss.noise_multiplicity - 1) * each + of_gradient


def bytes_for_backward(forward: Callable[[], Shaped[Tensor, "..."]], module: nn.Module) -> int:
    """Return the bytes of what one forward pass keeps for its backward pass, parameters aside.

    Of blocks that compute again it counts what the largest would keep, and all inputs of layers that train: these are
    kept for layer-wise gradients.
    """
    kept: dict[int, Tensor] = {}  # alive until counted, so that no two tensors share an address
    parameters = {_place(p) for p in module.parameters()}

    def count(t: Tensor) -> Tensor:
        if (place := _place(t)) not in parameters:
            kept[place] = t.detach()
        return t

    def size() -> int:
        return sum(t.untyped_storage().nbytes() for t in kept.values())

    with keeping_all(module) as blocks, ExitStack() as hooks:
        within = {block: 0 for block in blocks}
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(lambda b, _: within.update({b: -size()})).remove)
            hooks.callback(block.register_forward_hook(lambda b, *_: within.update({b: within[b] + size()})).remove)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            result = forward()
    if not blocks:
        return size()
    kept.clear()

    def count_input(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count(inputs[0])

    with ExitStack() as hooks, torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        for layer in module.modules():
            if any(p.requires_grad for p in layer.parameters(recurse=False)):
                hooks.callback(layer.register_forward_hook(count_input).remove)
        result = forward()
    del result
    return size() + max(within.values())


def _place(t: Tensor) -> int:
    """Return what tells the memory of a tensor from that of others; on "meta", which has none, its storage does."""
    storage = t.untyped_storage()
    return storage.data_ptr() or storage._cdata


def first(number: int, batch: NoisyBatch) -> NoisyBatch:
    """Return the first examples of a batch."""
    return NoisyBatch(*(t[:number] for t in batch))


@torch.no_grad()
def _require_blank(loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts) -> None:
    """Raise InputError unless the network takes an image that is blank, as NaN: no run may end where one is blank."""
    batch = first(2, made_up_batch(loss, denoiser, facts))
    batch.x[1] = torch.nan
    with refusing("the network fails on an image of NaN, as blank ones are"):
        loss(denoiser, batch)


def _require_gradients(loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts) -> None:
    """Raise InputError unless the loss of a noisy copy has a gradient for some trainable parameter."""
    trainable = [p for p in denoiser.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("the network has no trainable parameter: there is nothing to train")
    one = replace(loss, noise_multiplicity=1)
    losses = one(denoiser, first(2, made_up_batch(one, denoiser, facts)))
    found = torch.autograd.grad(losses.sum(), trainable, allow_unused=True) if losses.requires_grad else ()
    if all(gradient is None for gradient in found):
        raise InputError("no gradient of the loss reaches a trainable parameter: does the network detach its output?")
