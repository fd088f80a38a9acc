"""Whether a network can pay for its part of the budget, by public numbers alone."""

import math

from dpdm.methods import Diffusion, Method
from dpdm.privacy import AnyPlan

PAYS_UP_TO = 0.5
"""The largest `noise_to_signal` at which a network pays."""


def noise_to_signal(plan: AnyPlan, parameters: int) -> float | None:
    """Return z √P / E: the length of a step's noise ÷ the most that the mean of its gradients can be.

    A step adds noise of length z C √P to a sum of clipped gradients whose mean is at most C E long. Of shards it is
    C E / 2, since half of C is what their vectors are clipped to.

    Args:
        plan: It has z, the noise multiplier, and E, the expected batch size; C, the clipping norm, cancels.
        parameters: P, the trainable parameters of the network.

    Returns:
        None without steps or without noise.

    Source:
        Rule of thumb of this project (docs/guide/choosing-epsilon-and-steps.md, "Small data"): on Fashion-MNIST a
        network was as good as the prior alone at 0.26, and worse at 1.5.
    """
    if plan.noise_multiplier is None:
        return None
    longest = plan.poisson[-1].radius / plan.max_grad_norm
    return plan.noise_multiplier * math.sqrt(parameters) / (plan.expected_batch_size * longest)


def why_it_cannot_pay(
    plan: AnyPlan, parameters: int, *, started: bool = False, pipeline: bool = False, grey: bool = False
) -> str | None:
    """Return one line on what to do instead of training this network, or None if it may pay.

    Args:
        plan: What training it would release.
        parameters: Those that are trained.
        started: Whether the network has learnt from public images already, around a prior.
        pipeline: Whether it is that of a pipeline of diffusers.
        grey: Whether images have one channel.
    """
    ratio = noise_to_signal(plan, parameters)
    if ratio is None or ratio <= PAYS_UP_TO:
        return None
    hidden = f"z√P/E = {ratio:.2g} is above {PAYS_UP_TO:g}, so noise hides what it could learn"
    if pipeline:
        return (
            f"private steps will not pay: {hidden}. Train fewer parameters (--set network.trains=lora:4, or less), or "
            "in larger batches (--set privacy.expected_batch_size)"
        )
    if started:
        return (
            f"private steps will not pay: {hidden}. Leave the network as it is (--set privacy.steps=0, and no "
            "start.trains)"
        )
    signs = ", each for signs on a plain ground with --set codec.kind=pose" if grey else ""
    return (
        f"this network will not pay: {hidden}. Take a public start (dpdm pretrain), or the prior alone (--method prior)"
        f"{signs}; or fewer pixels (a smaller data.size), or about {max(2, round(ratio / PAYS_UP_TO))} times as many "
        "images. dpdm advise compares them"
    )


def why_none_are_taken(method: Method, plan: AnyPlan, parameters: int) -> str | None:
    """Return one line on why a run that has so much time takes no private steps, or None if it takes them.

    It takes none if they cannot pay, and what it begins with draws images without them: a public network around a
    private prior. The budget is then for the prior and the gains.
    """
    if not isinstance(method, Diffusion) or method.start is None or method.prior is None:
        return None
    ratio = noise_to_signal(plan, parameters)
    if method.start.trains != "all" or ratio is None or ratio <= PAYS_UP_TO:
        return None
    return (
        f"{plan.steps:,} steps would not pay: z√P/E = {ratio:.2g} is above {PAYS_UP_TO:g}, so noise hides what they "
        "could learn. Without --minutes they are taken all the same"
    )
