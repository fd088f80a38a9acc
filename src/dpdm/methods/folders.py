"""A `diffusers` folder as what DPDM trains: its scheduler says how network and denoiser are related."""

import math
from dataclasses import replace
from typing import Any

from torch import nn

from dpdm.diffusion import DDPM, DenoisingLoss, DiscreteTimes, MomentMatched, NoiseLevels, Sampler
from dpdm.methods.values import ImageFacts, PublicPart
from dpdm.networks import DiffusersFolder, Frame, KLCodec, PipelineFolder, TextToImageFolder
from dpdm.types import InputError


def of_scheduler(folder: PipelineFolder, given: object) -> DDPM:
    """Return the preconditioning that a folder's scheduler says; one that is `given` must be the same.

    Raises:
        InputError: It is another, or dpdm does not know such a scheduler.
    """
    if folder.released:  # which says both
        if not isinstance(given, DDPM) or given.noise_levels.times != folder.spec.times:
            raise InputError("a diffusers folder has preconditioning.kind = ddpm, with the times of its unet")
        return given
    said = folder.scheduled()
    levels = DiscreteTimes(schedule=said.schedule, times=said.times, beta_start=said.beta_start, beta_end=said.beta_end)
    own = DDPM(prediction=said.prediction, noise_levels=levels)
    if given not in (own, MomentMatched()):
        raise InputError(f"preconditioning follows from the scheduler of {folder.source}: leave it out")
    return own


def sampler_within(noise_levels: NoiseLevels, sampler: Any) -> Any:  # noqa: ANN401 (unions of the method's file)
    """Return the sampler; noise levels that nobody chose are kept between those of training."""
    if not isinstance(sampler, Sampler):
        return sampler
    usual, (low, high) = type(sampler)(), noise_levels.span
    if sampler.sigma_min == usual.sigma_min < low:
        sampler = replace(sampler, sigma_min=low)
    if sampler.sigma_max == usual.sigma_max and sampler.highest_level > high:
        sampler = replace(sampler, sigma_max=high)
        if sampler.highest_level > high:  # it adds noise above its first level
            sampler = replace(sampler, sigma_max=high * high / sampler.highest_level * (1 - 1e-9))
    return sampler


def seen_by(network: object, facts: ImageFacts) -> ImageFacts:
    """Return the facts of what a network learns: latents, images in a frame, or the images themselves."""
    return facts._replace(shape=network.seen(facts.shape)) if isinstance(network, PipelineFolder) else facts


def codec_of(network: object, module: nn.Module, facts: ImageFacts) -> KLCodec | Frame | None:
    """Return the autoencoder of a pipeline that has one, whose `module` gets the prompts of the classes; or a frame."""
    if isinstance(network, TextToImageFolder):
        return network.complete(module, facts.shape, facts.class_names)
    seen = seen_by(network, facts).shape
    return None if seen == facts.shape else Frame(shape=facts.shape, latent=seen)


def memory_of(network: object, facts: ImageFacts, records: int) -> int:
    """Return the bytes that the latents of so many images take, or these in a frame."""
    seen = seen_by(network, facts).shape
    size = 2 if isinstance(network, TextToImageFolder) else 1
    return 0 if seen == facts.shape else records * math.prod(seen) * size


def parts_of(network: object) -> tuple[PublicPart, ...]:
    """Return the public parts of a pipeline, with the digests of their weights."""
    return tuple(PublicPart(*part) for part in network.digests) if isinstance(network, PipelineFolder) else ()


def require_pixels(network: object) -> None:
    """Raise InputError for a network of texts and latents, whose latents are no levels of images."""
    if isinstance(network, TextToImageFolder):
        raise InputError("retrieval is for networks of images, not for a text-to-image pipeline: leave it out")


def require_classes(folder: PipelineFolder, facts: ImageFacts, loss: DenoisingLoss) -> None:
    """Raise InputError unless a folder's network takes such images, with a null class if training needs one."""
    folder.require_images(facts.shape, facts.num_classes)
    if not isinstance(folder, DiffusersFolder):
        return
    spec = folder.spec
    if loss.label_dropout and facts.num_classes and spec.with_classes(facts.num_classes) == facts.num_classes:
        raise InputError(
            f"the unet of {folder.source} has no null class, which loss.label_dropout = {loss.label_dropout:g} needs: "
            "set it to 0"
        )
