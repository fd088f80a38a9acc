"""A diffusers folder as a network: read offline, the denoiser that `diffusers` has, and what of it is trained."""

import copy
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffusers_pipelines import add_shards, save_pipeline
from dpdm.config import Machine
from dpdm.config.toml import decode_method, encode_method
from dpdm.diffusion import DDIM, DDPM, EDM, Churn, DenoisingLoss, DiscreteTimes, PreconditionedDenoiser
from dpdm.methods import Diffusion, ImageFacts, Prior, Start
from dpdm.methods.made_up import bytes_of_one, made_up_batch
from dpdm.networks import MLP, DiffusersFolder
from dpdm.networks.checkpointing import compute_again
from dpdm.privacy import LayerWise, OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.types import InputError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
FACTS = ImageFacts((1, 8, 8), ("a", "b"))
NO_CLASSES = ImageFacts((1, 8, 8), ())
LOSS = DenoisingLoss(noise_multiplicity=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("public") / "pipeline")


@pytest.fixture
def own(folder, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "pipeline"))


def diffusion(folder, *, trains="all", **changes):
    return Diffusion(network=DiffusersFolder(source=str(folder), trains=trains), **{"loss": LOSS} | changes)


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_levels_are_the_scheduler_s(schedule):
    ours = DiscreteTimes(schedule=schedule, times=200)
    product = diffusers.DDPMScheduler(num_train_timesteps=200, beta_schedule=schedule).alphas_cumprod.double()
    assert torch.allclose(ours.levels, ((1 - product) / product).sqrt(), rtol=1e-12)
    times = torch.arange(200)
    assert torch.allclose(ours.t(ours.levels), times.double(), atol=1e-9)
    assert torch.equal(ours.quantile((times + 0.5) / 200), ours.levels.float())
    middle = (ours.levels[6] * ours.levels[7]).sqrt()
    assert ours.t(middle).item() == pytest.approx(6.5)
    assert ours.span == (ours.levels[0], ours.levels[-1])


@pytest.mark.parametrize(
    "wrong",
    [{"times": 1}, {"times": 10**6}, {"beta_end": 1.5}, {"beta_start": 0.5}, {"schedule": "sigmoid"}],
)
def test_noise_levels_that_there_are_not_are_refused(wrong, unchecked):
    with pytest.raises(InputError):
        DiscreteTimes(**wrong)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_denoiser_is_what_diffusers_predicts_of_the_clean_image(prediction, tmp_path):
    public = save_pipeline(tmp_path / "pipeline", scheduler={"prediction_type": prediction, "clip_sample": False})
    method = diffusion(public)
    assert method.preconditioning == DDPM(prediction=prediction)
    denoiser = method.untrained(NO_CLASSES).denoiser
    plain = diffusers.DDPMPipeline.from_pretrained(public)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in (0, 12, 577, 999):
        sigma = method.preconditioning.noise_levels.levels[t].float()
        with torch.no_grad():
            ours = denoiser(x * (1 + sigma**2).sqrt(), sigma.repeat(4), torch.zeros(4, dtype=torch.long))
            theirs = plain.scheduler.step(plain.unet(x, t).sample, t, x).pred_original_sample
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1, sigma.item()))


def test_ddim_draws_what_ddim_of_diffusers_draws_under_the_same_noise(folder):
    """At the same levels, σ of its times, both are Euler steps of one equation."""
    method = diffusion(folder)
    denoiser, levels = method.untrained(NO_CLASSES).denoiser, method.preconditioning.noise_levels.levels
    plain = diffusers.DDPMPipeline.from_pretrained(folder)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    x = theirs = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    sigmas = [*levels[scheduler.timesteps].tolist(), 0.0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(plain.unet(theirs, t).sample, t, theirs).prev_sample
        labels = torch.zeros(2, dtype=torch.long)
        begin = x * (1 + sigmas[0] ** 2) ** 0.5
        ours = DDIM()._integrate(denoiser, begin, labels, sigmas, torch.Generator())
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


TRAINED = ["all", "norms", "attention", "last", "lora:2", "mid_block.*,conv_out.weight"]


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("trains", TRAINED)
def test_per_example_gradients_are_the_same_by_every_strategy(trains, classes, folder):
    facts = FACTS if classes else NO_CLASSES
    denoiser = diffusion(folder, trains=trains).untrained(facts).denoiser
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = made_up_batch(LOSS, denoiser, facts)
    exact = clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=1e-2, strategy=OneBackwardEach())
    for strategy in (LayerWise(), Vectorized()):
        other = clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=1e-2, strategy=strategy)
        assert exact.vector.abs().max() > 1e-5
        assert torch.allclose(other.vector, exact.vector, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("trains", ["all", "lora:2"])
def test_blocks_that_compute_again_have_the_same_gradients_and_keep_less(trains, folder):
    denoiser = diffusion(folder, trains=trains).untrained(FACTS).denoiser
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch = made_up_batch(LOSS, denoiser, FACTS)

    def kept_bytes():
        kept = {}

        def count(t):
            kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            result = LOSS(denoiser, batch)
        del result
        return sum(t.untyped_storage().nbytes() for t in kept.values())

    ways = (LayerWise(), OneBackwardEach(), Vectorized())
    before = [clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=1e-2, strategy=way).vector for way in ways]
    kept, counted = kept_bytes(), bytes_of_one(LOSS, denoiser, FACTS)
    compute_again(denoiser)
    again = copy.deepcopy(denoiser)  # as a run's average is
    assert kept_bytes() < 0.7 * kept
    assert bytes_of_one(LOSS, denoiser, FACTS) < counted
    for module in (denoiser, again):
        for way, sound in zip(ways, before, strict=True):
            found = clipped_grad_sum(LOSS, module, batch, max_grad_norm=1e-2, strategy=way).vector
            assert torch.equal(found, sound)
    with pytest.raises(InputError, match=r"machine.checkpointing is for a network of diffusers, and there is none"):
        compute_again(MLP(width=8, blocks=1).build((1, 8, 8), num_classes=0))
    with pytest.raises(InputError, match=r"machine.checkpointing has no effect on the strategy vectorized"):
        Machine(checkpointing=True, strategy="vectorized")


@pytest.mark.parametrize("trains", TRAINED)
def test_what_is_frozen_has_no_gradient_and_new_classes_are_trained(trains, folder):
    denoiser = diffusion(folder, trains=trains).untrained(FACTS).denoiser
    batch = made_up_batch(LOSS, denoiser, FACTS)
    LOSS(denoiser, batch).sum().backward()
    trained = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    assert {name for name, p in denoiser.named_parameters() if p.grad is not None} <= trained
    assert "network.unet.class_embedding.weight" in trained
    assert (len(trained) < len([*denoiser.parameters()])) == (trains != "all")


def test_new_classes_and_low_rank_change_nothing_at_first(folder):
    plain = diffusion(folder).untrained(NO_CLASSES).denoiser
    grown = diffusion(folder, trains="lora:3").untrained(FACTS).denoiser
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 50.0])
    with torch.no_grad():
        expected = plain(x, sigma, torch.zeros(3, dtype=torch.long))
        assert torch.allclose(grown(x, sigma, torch.tensor([0, 1, 2])), expected, rtol=1e-5, atol=1e-5)


def test_low_rank_is_merged_exactly_and_has_the_names_of_peft(folder):
    network = diffusion(folder, trains="lora:2").untrained(NO_CLASSES).denoiser.network
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape))
    plain = diffusion(folder).untrained(NO_CLASSES).denoiser.network
    before = copy.deepcopy(plain)
    plain.unet.load_state_dict(network.merged())
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.9]), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        assert torch.allclose(plain(*inputs), network(*inputs), atol=1e-5)
        assert not torch.allclose(plain(*inputs), before(*inputs), atol=1e-3)
    assert {name.rsplit(".", 2)[1] for name in network.low_rank()} == {"lora_A", "lora_B"}


def test_one_image_never_sees_another(folder):
    denoiser = diffusion(folder).untrained(FACTS).denoiser
    x, sigma, labels = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 9.0]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        one = denoiser(x[:1], sigma[:1], labels[:1])
        assert torch.allclose(denoiser(x, sigma, labels)[:1], one, atol=1e-5)


def test_what_a_release_says_comes_back_and_says_no_place(folder):
    method = diffusion(folder, trains="lora:2")
    said = method.said(method.untrained(FACTS))
    table = {"method": "diffusion", **encode_method(said)}
    assert table["network"]["source"] == "pipeline"
    assert decode_method(table) == said
    assert len(said.network.sha256) == 64
    assert said.network_parts() == method.network_parts()
    again = said.begun_from([folder])
    assert torch.equal(
        again.untrained(FACTS).state_dict()["denoiser.network.unet.conv_in.weight"],
        method.untrained(FACTS).state_dict()["denoiser.network.unet.conv_in.weight"],
    )


def test_a_width_of_heads_that_is_not_said_stays_so(tmp_path):
    public = save_pipeline(tmp_path / "pipeline", attention_head_dim=None)
    said = DiffusersFolder(source=public).spec
    assert said.attention_head_dim is None


def test_weights_are_the_folder_s_and_nothing_is_fetched(folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.random.get_rng_state()
    unet = diffusion(folder).untrained(NO_CLASSES).denoiser.network.unet
    assert torch.equal(torch.random.get_rng_state(), before)
    public = diffusers.UNet2DModel.from_pretrained(Path(folder) / "unet")
    for name, value in public.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value)


def refused(folder, match, facts=FACTS, **changes):
    with pytest.raises(InputError, match=match) as error:
        diffusion(folder, **changes).untrained(facts)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    refused(tmp_path / "nothing", "holds no diffusers pipeline")


def test_a_pickle_is_refused(own):
    (own / "unet" / "diffusion_pytorch_model.safetensors").rename(own / "unet" / "diffusion_pytorch_model.bin")
    refused(own, r"diffusion_pytorch_model.bin.*never from a pickle")


def test_files_that_no_digest_covers_are_not_read(folder, own):
    """Loaders take shards before the one file of weights."""
    add_shards(own / "unet", "diffusion_pytorch_model")
    plain, other = (DiffusersFolder(source=str(each)) for each in (folder, own))
    assert plain.digest == other.digest
    weights, same = (each.build((1, 8, 8), num_classes=0).state_dict() for each in (plain, other))
    for name, weight in weights.items():
        assert torch.equal(weight, same[name]), name


def test_damaged_weights_are_refused(own):
    path = own / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(own, "is damaged")


@pytest.mark.parametrize("part", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_settings_are_refused(part, own):
    (own / part).write_text("{")
    refused(own, "cannot be read")


def test_weights_of_another_unet_are_refused(own):
    change(own / "unet" / "config.json", layers_per_block=2)
    refused(own, "does not hold what config.json says|is damaged")


def test_weights_that_are_not_finite_are_refused(own):
    unet = diffusers.UNet2DModel.from_pretrained(own / "unet")
    with torch.no_grad():
        unet.conv_in.bias[0] = torch.nan
    unet.save_pretrained(own / "unet")
    refused(own, "not finite")


@pytest.mark.parametrize(
    ("part", "entries", "match"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "schedule must be one of"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction must be one of"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained or rescaled"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "trained or rescaled"),
        ("scheduler/scheduler_config.json", {"beta_start": "small"}, "no numbers"),
        ("scheduler/scheduler_config.json", {"shift": 3.0}, "says shift"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"out_channels": 2}, "other channels than it takes"),
        ("unet/config.json", {"cross_attention_dim": 8}, "says cross_attention_dim"),
        ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block"),
        ("unet/config.json", {"layers_per_block": 17}, "layers_per_block × levels"),
        ("unet/config.json", {"block_out_channels": "wide"}, "block"),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "a pipeline of scheduler, unet, vqvae"),
    ],
)
def test_what_dpdm_does_not_know_is_refused(part, entries, match, own):
    change(own / part, **entries)
    refused(own, match)


def test_other_images_are_refused(folder, tmp_path):
    refused(folder, "1 × 8 × 8.*data.channels", ImageFacts((3, 8, 8), ()))
    refused(folder, "1 × 8 × 8.*data.size", ImageFacts((1, 16, 16), ()))
    free = save_pipeline(tmp_path / "free", sample_size=None)
    assert diffusion(free).untrained(ImageFacts((1, 16, 16), ())).facts.shape == (1, 16, 16)


def test_weights_that_change_after_they_were_read_are_not_claimed(own):
    method = diffusion(own)
    generator, path = method.untrained(FACTS), own / "unet" / "diffusion_pytorch_model.safetensors"
    other = {key: value + 1 for key, value in load_file(path).items()}
    save_file(other, path, {"format": "pt"})
    with pytest.raises(InputError, match="was changed since the run has read it"):
        method.said(generator)


def test_sides_that_it_cannot_halve_get_a_border_which_drawn_images_lose(folder):
    facts = ImageFacts((1, 7, 8), ())
    generator = diffusion(folder, sampler=DDIM(steps=2)).untrained(facts)
    assert generator.seen.shape == (1, 8, 8)
    drawn = generator.draw(torch.zeros(3, dtype=torch.int64), random=torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 1, 7, 8)


def test_other_classes_are_refused_and_a_null_class_is_needed_where_labels_are_dropped(tmp_path):
    three = save_pipeline(tmp_path / "three", num_class_embeds=3)
    refused(three, "knows 3 classes", NO_CLASSES)
    diffusion(three).require_images(FACTS)  # the third is the null class
    names = ImageFacts((1, 8, 8), ("a", "b", "c"))
    with pytest.raises(InputError, match="has no null class"):
        diffusion(three).require_images(names)
    kept = diffusion(three, loss=DenoisingLoss(noise_multiplicity=2, label_dropout=0.0))
    kept.require_images(names)
    assert kept.untrained(names).denoiser.network.unet.class_embedding.weight.abs().max() > 0


@pytest.mark.parametrize("trains", ["", "lora", "lora:0", "lora:999", "nothing_of_it", "a b", ",".join("a" * 20)])
def test_what_cannot_be_trained_is_refused(trains, folder):
    refused(folder, "trains", trains=trains)


def test_low_rank_needs_attention(tmp_path):
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    refused(save_pipeline(tmp_path / "plain", **plain), "has none: train something else", trains="lora:2")


def test_other_parts_of_the_method_do_not_fit(folder):
    for wrong in ({"prior": Prior()}, {"start": Start(sources=("x",), gains=False)}, {"preconditioning": EDM()}):
        with pytest.raises(InputError):
            diffusion(folder, **wrong)
    with pytest.raises(InputError, match="another folder than the settings name"):
        Diffusion(network=DiffusersFolder(source=folder, sha256="0" * 64)).network_parts()
    said = diffusion(folder).said(diffusion(folder).untrained(FACTS)).network
    with pytest.raises(InputError, match="name its folder"):
        said.require_weights()
    with pytest.raises(InputError, match=r"preconditioning.kind = ddpm"):
        Diffusion(network=said)
    with pytest.raises(InputError, match="sees one image"):
        DiffusersFolder(source=folder).build((1, 8, 8), num_classes=0, images_in=2)


@pytest.mark.parametrize("missing", ["diffusers", "peft"])
def test_without_the_extra_the_line_says_what_to_install(missing, folder, monkeypatch):
    method = diffusion(folder, trains="lora:2")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"pip install 'dpdm\[diffusers\]'"):
        method.untrained(FACTS)


def test_noise_levels_of_samplers_that_nobody_chose_are_those_of_training(tmp_path):
    dark = save_pipeline(tmp_path / "dark", scheduler={"beta_start": 0.00085, "beta_end": 0.012})
    method = diffusion(dark, sampler=DDIM(steps=7), samplers={"other": Churn(steps=3)})
    low, high = method.preconditioning.noise_levels.span
    assert (method.sampler.sigma_min, method.sampler.sigma_max) == (low, min(high, 80.0))
    assert method.samplers["other"].highest_level <= high * (1 + 1e-9)
    with pytest.raises(InputError, match=r"sigma_min = 0.001 is below"):
        diffusion(dark, sampler=DDIM(sigma_min=0.001))


def test_its_preconditioning_serves_other_networks_too():
    method = Diffusion(network=MLP(width=8, blocks=1), preconditioning=DDPM(), sampler=DDIM(sigma_min=0.02))
    denoiser = method.untrained(FACTS).denoiser
    assert isinstance(denoiser, PreconditionedDenoiser)
    assert isinstance(denoiser.network, nn.Module)
