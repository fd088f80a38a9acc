"""A text-to-image folder as a network: read offline, what diffusers computes, what is trained and released."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_pipelines import SCHEDULER, add_adapter, add_shards, save_text_pipeline
from dpdm.config.toml import decode_method, encode_method
from dpdm.diffusion import DDIM, DDPM, DenoisingLoss
from dpdm.methods import Diffusion, ImageFacts, Retrieval, ema
from dpdm.methods.made_up import made_up_batch
from dpdm.networks import TextToImageFolder, digest_of_part
from dpdm.privacy import LayerWise, OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.types import InputError, levels_to_tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]
FACTS = ImageFacts((3, 16, 16), ("cat", "dog"))
LOSS = DenoisingLoss(noise_multiplicity=2)
TRAINED = ["all", "norms", "attention", "last", "lora:2", "*attn2*"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_text_pipeline(tmp_path_factory.mktemp("public") / "texts")


@pytest.fixture
def own(folder, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "texts"))


def diffusion(folder, *, trains="lora:2", prompt="a photo of a {class}", **changes):
    network = TextToImageFolder(source=str(folder), trains=trains, prompt=prompt)
    return Diffusion(network=network, **{"loss": LOSS} | changes)


def moved(module):
    """Give what is trained other numbers, as training does."""
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module


@pytest.mark.parametrize("trains", TRAINED)
def test_per_example_gradients_are_the_same_by_every_strategy(trains, folder):
    generator = diffusion(folder, trains=trains).untrained(FACTS)
    denoiser = moved(generator.denoiser)
    batch = made_up_batch(LOSS, denoiser, generator.seen)
    exact = clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=1e-2, strategy=OneBackwardEach())
    assert exact.vector.abs().max() > 1e-5
    for strategy in (LayerWise(), Vectorized()):
        other = clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=1e-2, strategy=strategy)
        assert torch.allclose(other.vector, exact.vector, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("trains", TRAINED)
def test_a_state_holds_what_is_trained_and_the_prompts_alone(trains, folder):
    denoiser = diffusion(folder, trains=trains).untrained(FACTS).denoiser
    LOSS(denoiser, made_up_batch(LOSS, denoiser, FACTS._replace(shape=(4, 8, 8)))).sum().backward()
    with_gradient = {name for name, p in denoiser.named_parameters() if p.grad is not None}
    assert {*denoiser.state_dict()} == with_gradient | {"network.prompts"}
    assert any("attn2" in name for name in with_gradient)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_denoiser_is_what_diffusers_predicts_of_the_clean_latent_of_a_prompt(prediction, tmp_path):
    scheduler = {"prediction_type": prediction, "clip_sample": False}
    public = save_text_pipeline(tmp_path / "texts", scheduler=scheduler, kind="DDPMScheduler")
    method = diffusion(public)
    assert method.preconditioning == DDPM(
        prediction=prediction,
        noise_levels=type(method.preconditioning.noise_levels)(
            schedule="scaled_linear", beta_start=SCHEDULER["beta_start"], beta_end=SCHEDULER["beta_end"]
        ),
    )
    denoiser = method.untrained(FACTS).denoiser
    plain = diffusers.DiffusionPipeline.from_pretrained(public, safety_checker=None)
    words, no_words = plain.encode_prompt(["a photo of a dog"], "cpu", 1, True)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for t in (1, 400, 999):
        sigma = method.preconditioning.noise_levels.levels[t].float()
        with torch.no_grad():
            ours = denoiser(x * (1 + sigma**2).sqrt(), sigma.repeat(2), torch.tensor([1, 2]))
            raw = plain.unet(x, t, torch.cat([words, no_words])).sample
            theirs = plain.scheduler.step(raw, t, x).pred_original_sample
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * max(1, sigma.item()))


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler"])
def test_any_scheduler_of_the_same_betas_says_the_same(kind, own):
    expected = diffusion(own).preconditioning
    getattr(diffusers, kind)(**SCHEDULER).save_pretrained(own / "scheduler")
    index = json.loads((own / "model_index.json").read_text())
    change(own / "model_index.json", scheduler=[index["scheduler"][0], kind])
    assert diffusion(own).preconditioning == expected


def test_latents_are_scaled_posterior_means_and_each_depends_on_its_image_alone(folder):
    codec = diffusion(folder).untrained(FACTS).codec
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    rows = codec.rows(images)
    assert torch.equal(codec.rows(images[[3, 1]]), rows[[3, 1]])
    assert torch.equal(
        codec.rows(np.concatenate([images[4:], 0 * images])), torch.cat([rows[4:], codec.rows(0 * images)])
    )
    vae = diffusers.AutoencoderKL.from_pretrained(Path(folder) / "vae")
    with torch.no_grad():
        means = vae.encode(levels_to_tensor(images)).latent_dist.mean * vae.config.scaling_factor
        assert torch.allclose(rows.view(5, 8, 8, 4).permute(0, 3, 1, 2), means, atol=1e-5)
        assert torch.allclose(codec.decode(means), vae.decode(means / vae.config.scaling_factor).sample, atol=1e-5)


def test_low_rank_changes_nothing_at_first_and_is_merged_exactly(folder):
    network = diffusion(folder).untrained(FACTS).denoiser.network
    plain = diffusion(folder, trains="all").untrained(FACTS).denoiser.network
    inputs = torch.randn(3, 4, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert torch.allclose(network(*inputs), plain(*inputs), atol=1e-5)
        moved(network)
        assert not torch.allclose(network(*inputs), plain(*inputs), atol=1e-3)
        plain.unet.load_state_dict(network.merged())
        assert torch.allclose(network(*inputs), plain(*inputs), atol=1e-5)


def test_classes_are_prompts_and_no_class_is_no_text(folder):
    network = TextToImageFolder(source=folder)
    assert network.prompts_of(("cat", "dog")) == ("a photo of a cat", "a photo of a dog", "")
    assert network.prompts_of(()) == ("",)
    assert TextToImageFolder(source=folder, prompt="a street").prompts_of(()) == ("a street",)
    prompts = diffusion(folder).untrained(FACTS).denoiser.network.prompts
    assert prompts.shape == (3, 16, 16)
    assert not torch.equal(prompts[0], prompts[1])
    with pytest.raises(InputError, match="prompt must be"):
        TextToImageFolder(source=folder, prompt="two\nlines")


def test_many_images_are_drawn_in_the_memory_of_some(folder):
    network = diffusion(folder).untrained(FACTS).denoiser.network
    x, labels = torch.randn(20, 4, 4, 4), torch.arange(20) % 3
    with torch.no_grad():
        few = torch.cat([network(x[i : i + 1], torch.full((1,), 0.5), labels[i : i + 1]) for i in range(20)])
        assert torch.allclose(network(x, torch.full((20,), 0.5), labels), few, atol=1e-5)


def test_an_average_shares_the_public_weights_and_nothing_else(folder):
    denoiser = diffusion(folder).untrained(FACTS).denoiser
    average = ema.start(denoiser)
    pairs = zip(average.named_parameters(), denoiser.parameters(), strict=True)
    assert all((slow is fast) == ("lora_" not in name) for (name, slow), fast in pairs)
    assert not any(p is q for p, q in zip(copy.deepcopy(denoiser).parameters(), denoiser.parameters(), strict=True))


def test_what_a_release_says_comes_back_and_says_no_place(folder):
    method = diffusion(folder)
    said = method.said(method.untrained(FACTS))
    table = {"method": "diffusion", **encode_method(said)}
    assert table["network"]["source"] == "texts"
    assert decode_method(table) == said
    assert said.network_parts() == method.network_parts()
    assert said.networks == ("texts/unet", "texts/vae", "texts/text_encoder", "texts/tokenizer")
    assert [part.name for part in said.untrained(FACTS).parts] == ["texts/unet", "texts/vae"]
    again = said.begun_from([folder]).untrained(FACTS).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in method.untrained(FACTS).state_dict().items())


def test_a_release_is_given_its_public_weights(folder):
    method = diffusion(folder, sampler=DDIM(steps=2))
    generator = method.untrained(FACTS)
    moved(generator.denoiser)
    with torch.device("meta"):
        assert method.said(generator).untrained(FACTS).state_dict().keys() == generator.state_dict().keys()
    opened = method.said(generator).untrained(FACTS)
    opened.load_state_dict(generator.state_dict())
    for part in opened.parts:
        opened.supply(part, Path(folder) / part.name.partition("/")[2])
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        one, other = (each.draw(labels, random=torch.Generator().manual_seed(0)) for each in (generator, opened))
    assert torch.equal(one, other)
    assert one.shape == (2, 3, 16, 16)


def test_a_digest_is_that_of_what_sha256sum_prints(folder, own):
    import hashlib

    part, names = Path(folder) / "vae", ("config.json", "diffusion_pytorch_model.safetensors")
    lines = "".join(f"{hashlib.sha256((part / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert digest_of_part(part) == hashlib.sha256(lines.encode()).hexdigest()
    before = TextToImageFolder(source=str(own)).digests
    change(own / "vae" / "config.json", scaling_factor=0.5)
    assert [one == other for one, other in zip(before, TextToImageFolder(source=str(own)).digests, strict=True)] == [
        True,
        False,
        True,
        True,
    ]


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(folder, match, facts=FACTS, **changes):
    def begin():
        method = diffusion(folder, **changes)
        method.require_images(facts)
        method.untrained(facts)

    with pytest.raises(InputError, match=match) as error:
        begin()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "never from a pickle"),
        ("vae/diffusion_pytorch_model.safetensors", "never from a pickle"),
        ("text_encoder/model.safetensors", "never from a pickle"),
    ],
)
def test_a_pickle_is_refused(path, match, own):
    (own / path).rename((own / path).with_suffix(".bin"))
    refused(own, match)


def test_files_that_no_digest_covers_are_not_read(folder, own):
    """Loaders take shards before the one file of weights, and add adapters to it."""
    for part in ("unet", "vae"):
        add_shards(own / part, "diffusion_pytorch_model")
    add_adapter(own / "text_encoder")
    add_shards(own / "text_encoder", "model")
    (plain, others) = (diffusion(each).untrained(FACTS) for each in (folder, own))
    assert [digest for _, digest in plain.folder.digests] == [digest for _, digest in others.folder.digests]
    for one, other in ((plain.denoiser.network, others.denoiser.network), (plain.codec, others.codec)):
        for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(weight, same), name
    assert torch.equal(plain.denoiser.network.prompts, others.denoiser.network.prompts)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_damaged_files_are_refused(part, own):
    files = [path for path in (own / part).iterdir() if path.suffix == ".safetensors" or path.name == "tokenizer.json"]
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    refused(own, "is damaged")


def test_weights_that_are_not_finite_are_refused(own):
    vae = diffusers.AutoencoderKL.from_pretrained(own / "vae")
    with torch.no_grad():
        vae.quant_conv.bias[0] = torch.nan
    vae.save_pretrained(own / "vae")
    refused(own, "not finite")


@pytest.mark.parametrize(
    ("path", "entries", "match"),
    [
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, "a pipeline of controlnet"),
        ("model_index.json", {"tokenizer": ["own", "Words"]}, "tokenizer is"),
        ("scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ("unet/config.json", {"in_channels": 9}, "gives other channels than it takes"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"more": 1}, "says more, which dpdm does not know"),
        ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block"),
        ("unet/config.json", {"transformer_layers_per_block": 33}, "transformer_layers"),
        ("unet/config.json", {"layers_per_block": 8, "transformer_layers_per_block": 8}, "of all blocks"),
        ("unet/config.json", {"layers_per_block": 2}, "not what its config.json says"),
        ("unet/config.json", {"cross_attention_dim": 8}, "widths of a token differ"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ("text_encoder/config.json", {"max_position_embeddings": 10**6}, "tokens"),
        ("vae/config.json", {"latents_mean": [0, 0, 0, 0]}, "a mean and a deviation"),
        ("vae/config.json", {"latent_channels": 8}, "channels of latents differ"),
        ("vae/config.json", {"scaling_factor": "small"}, "holds what no autoencoder says"),
        ("vae/config.json", {"layers_per_block": 3}, "does not hold what config.json says|is damaged"),
    ],
)
def test_what_dpdm_does_not_know_is_refused(path, entries, match, own):
    change(own / path, **entries)
    refused(own, match)


def test_other_images_are_refused(folder):
    refused(folder, "3 channels.*data.channels", ImageFacts((1, 16, 16), ()))


def test_weights_that_change_after_they_were_read_are_not_claimed(own):
    method = diffusion(own)
    generator, path = method.untrained(FACTS), own / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="was changed since the run has read it"):
        method.said(generator)


def test_sides_that_it_cannot_shrink_get_a_border_which_drawn_images_lose(folder):
    """A public image is encoded with its border, by itself, and decoded without."""
    generator = diffusion(folder, sampler=DDIM(steps=2)).untrained(FACTS._replace(shape=(3, 17, 13)))
    assert generator.seen.shape == (4, 10, 8)
    images = np.random.default_rng(0).integers(0, 256, (2, 17, 13, 3), dtype=np.uint8)
    rows = generator.codec.rows(images)
    assert torch.equal(rows[1:], generator.codec.rows(images[1:]))
    whole = np.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)), mode="edge")
    same = diffusion(folder).untrained(FACTS._replace(shape=(3, 20, 16))).codec
    assert torch.equal(rows, same.rows(whole))
    latents = rows.reshape(2, 10, 8, 4).permute(0, 3, 1, 2)
    assert torch.equal(generator.codec.decode(latents), same.decode(latents)[:, :, 1:18, 1:14])


def test_a_checker_of_finished_images_is_left_alone(own):
    change(own / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    diffusion(own).require_images(FACTS)


def test_what_a_release_says_is_said_together(folder):
    said = diffusion(folder).said(diffusion(folder).untrained(FACTS)).network
    with pytest.raises(InputError, match=r"leave out network.unet and network.latents and network.sha256"):
        said.require_weights()
    for wrong in ({"latents": None}, {"sha256": ()}, {"unet": None}):
        with pytest.raises(InputError, match="said together"):
            TextToImageFolder(
                **{"source": "x", "sha256": said.sha256, "unet": said.unet, "latents": said.latents} | wrong
            )
    with pytest.raises(InputError, match="64 hexadecimal digits each"):
        TextToImageFolder(source=folder, sha256=("0" * 64,))
    with pytest.raises(InputError, match="another folder than the settings name"):
        TextToImageFolder(source=folder, sha256=("0" * 64,) * 4).said()


def test_retrieval_is_refused_where_latents_are_no_levels(folder):
    with pytest.raises(InputError, match="retrieval is for networks of images, not for a text-to-image pipeline"):
        Diffusion(network=TextToImageFolder(source=folder), retrieval=Retrieval(keep=6))
