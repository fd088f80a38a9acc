"""What private steps added to public weights tells of members, once the public weights say how hard an image is."""

import dataclasses

import numpy as np
import pytest
import torch

from diffusers_pipelines import save_pipeline, save_text_pipeline
from dpdm.audit.membership import ATTACKS, attack_scores, judge
from dpdm.audit.reference import Calibrated, public_denoiser
from dpdm.config import Machine
from dpdm.data import ImageDataset, open_dataset
from dpdm.diffusion import EDM, DenoisingLoss
from dpdm.methods import Diffusion, ImageFacts, Optimizer, PriorAlone, Start
from dpdm.networks import MLP, DiffusersFolder, TextToImageFolder
from dpdm.privacy import NonPrivate
from dpdm.runs import Trainer
from dpdm.runs.start import open_starts, save_start
from dpdm.types import images_to_tensor

METHOD = Diffusion(
    network=MLP(width=64, blocks=2),
    preconditioning=EDM(),
    loss=DenoisingLoss(noise_multiplicity=4, label_dropout=0.0),
    optimizer=Optimizer(learning_rate=3e-3, ema_decay=0.99),
)


def digits(part):
    """A part of the digits in an order of chance."""
    data = open_dataset("digits")
    chosen = np.random.default_rng(0).permutation(len(data))[part]
    return ImageDataset(
        images=data.images[chosen], labels=data.labels[chosen], num_classes=10, name="digits", public=True
    )


def trained(method, data, steps):
    plan = NonPrivate.dp_sgd(dataset_size=len(data), expected_batch_size=len(data), steps=steps)
    machine = Machine(strategy="layer-wise", precision="float32")
    return Trainer(method=method, plan=plan, machine=machine).fit(data).generator


def start_in(folder, network, public):
    folder.mkdir(parents=True)
    said = {"classes": [*public.class_names], "preconditioning": {"kind": "edm"}, "facts": {"shape": [1, 8, 8]}}
    save_start(folder, network.state_dict(), public, said)
    return str(folder)


@pytest.mark.proof
def test_an_adapter_that_memorises_tells_its_members_and_the_base_makes_it_plainer(tmp_path):
    """Calibrated where it must succeed: fifty steps without noise, from a network that has seen 400 others.

    That is long before the attacks without a base tell much.
    """
    public = digits(slice(200, 600))
    source = start_in(tmp_path / "public", trained(METHOD, public, 150).denoiser.network, public)
    method = dataclasses.replace(METHOD, start=Start(sources=(source,), gains=False, trains="low-rank:16"))
    generator = trained(method, digits(slice(100)), 50)
    accused = digits(slice(200))
    x, labels, were_in = images_to_tensor(accused.images), torch.from_numpy(accused.labels), np.arange(200) < 100
    base = public_denoiser(method, generator, open_starts((source,)), seed=0)

    def auc(attack):
        return judge(attack_scores(attack, generator.denoiser, x, labels), were_in, delta=1e-3).auc

    calibrated = auc(Calibrated(base))
    assert calibrated > 0.75
    assert calibrated > max(auc(attack) for attack in ATTACKS.values()) + 0.1
    untouched = judge(attack_scores(Calibrated(base), base, x, labels), were_in, delta=1e-3)
    assert untouched.auc == 0.5, "of a network that no step has changed there is nothing to tell"


def test_the_base_is_the_start_whose_weights_are_nearest(tmp_path):
    public = digits(slice(20))
    facts = ImageFacts(public.shape, public.class_names)
    around = Diffusion(network=METHOD.network)
    networks = [around.untrained(facts, seed=seed).denoiser.network for seed in (1, 2)]
    for network in networks:
        for weight in network.parameters():
            torch.nn.init.normal_(weight)
    shown = [dataclasses.replace(public, name=name) for name in ("one", "two")]
    sources = [
        start_in(tmp_path / each.name, *pair)
        for each, pair in zip(shown, zip(networks, shown, strict=True), strict=True)
    ]
    method = dataclasses.replace(around, start=Start(sources=tuple(sources)))
    generator = method.untrained(facts)
    near = {name: value + 0.1 for name, value in networks[1].state_dict().items()}
    generator.denoiser.network.load_state_dict(near)
    base = public_denoiser(method, generator, open_starts(sources), seed=0)
    for name, value in networks[1].state_dict().items():
        assert torch.equal(base.network.state_dict()[name], value)
    assert torch.equal(next(iter(generator.denoiser.network.state_dict().values())), next(iter(near.values())))


@pytest.mark.parametrize("kind", [DiffusersFolder, TextToImageFolder])
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")
def test_the_base_of_a_pipeline_is_its_public_network(kind, tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    save, channels = (save_pipeline, 1) if kind is DiffusersFolder else (save_text_pipeline, 3)
    method = Diffusion(network=kind(source=save(tmp_path / "public"), trains="lora:2"))
    generator = method.untrained(ImageFacts((channels, 8, 8), ("a", "b")), seed=3)
    x = torch.randn(2, *generator.seen.shape, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.ones(2), torch.tensor([0, 1])
    with torch.no_grad():
        before = generator.denoiser(x, sigma, labels)
        for parameter in generator.denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        base = public_denoiser(method, generator, (), seed=3)
        assert torch.equal(base(x, sigma, labels), before)
        assert not torch.equal(generator.denoiser(x, sigma, labels), before)


def test_without_public_weights_there_is_no_base():
    facts = ImageFacts((1, 8, 8), ("a", "b"))
    generator = METHOD.untrained(facts)
    assert public_denoiser(METHOD, generator, (), seed=0) is None
    assert public_denoiser(PriorAlone(), generator, (), seed=0) is None
