import tomllib

import numpy as np
import pytest
import tomli_w

from dpdm.config import Config, Data, choose_sampler, decode, decode_plan, encode, load_config, preset_names
from dpdm.diffusion import DDIM, Churn, MomentMatched
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import DPSGD, NonPrivate, Plan
from dpdm.types import InputError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_decodes_and_survives_the_round_trip(name):
    config = load_config(name)
    assert decode(Config, encode(config)) == config


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_declares_its_size_and_shape_so_that_a_plan_reads_no_data(name):
    config = load_config(name)
    assert config.privacy.dataset_size
    assert config.data.size
    assert config.data.channels
    assert config.data.num_classes is not None


def test_the_presets_are_those_that_are_promised():
    published = [
        "celeba-32",
        "celeba-64",
        "cifar10",
        "fashion-mnist",
        "fashion-mnist-epsilon-0.2",
        "imagenet-32",
        "mnist",
    ]
    published += ["mnist-epsilon-0.2", "mnist-epsilon-1"]
    for_a_laptop = ["digits", "fashion-mnist-cpu", "fashion-mnist-cpu-epsilon-0.2", "fashion-mnist-cpu-epsilon-1"]
    assert preset_names() == sorted([*published, *for_a_laptop])


@pytest.mark.parametrize(
    "source",
    [
        "photos",
        "./digits",
        "scans.zip",
        "digits.npz",
        "t10k-images-idx3-ubyte",
        "a.parquet",
        "fashion-mnist",
        "digits:test",
    ],
)
@pytest.mark.parametrize("way", ["data.source={}", 'data={{source="{}"}}'])
def test_a_presets_epsilon_is_for_its_own_images_alone(source, way):
    """The kind: settings that somebody chose for other images."""
    override = way.format(source)
    with pytest.raises(InputError, match="epsilon is missing"):
        load_config("digits", overrides=[override]).plan(lambda: 100)
    assert load_config("digits", overrides=["privacy.epsilon=2", override]).privacy.epsilon == 2.0
    assert load_config("digits", overrides=["data.source=digits"]).privacy.epsilon == 10.0


def test_overrides_reach_every_level_and_parse_as_toml_or_text():
    config = load_config(
        "digits",
        overrides=["privacy.steps=7", "machine.precision=float32", "preconditioning.noise_levels.mean=-0.5"],
    )
    assert config.privacy.steps == 7
    assert config.machine.precision == "float32"
    assert config.preconditioning.noise_levels.mean == -0.5


def test_a_new_kind_drops_the_settings_of_the_old_one_whatever_the_order():
    config = load_config("fashion-mnist-cpu", overrides=["network.width=64", "network.kind=mlp"])
    assert config.network == MLP(width=64)
    assert isinstance(load_config("digits", overrides=["network.kind=compact-unet"]).network, CompactUNet)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("privacy.stepz=3", "unknown key privacy.stepz: did you mean steps?"),
        ("privacyy.steps=3", "unknown key privacyy: did you mean privacy?"),
        ("network.kind=gan", "network.kind must be one of compact-unet, mlp, unet, zero, not 'gan'"),
        ("privacy.steps=many", "privacy.steps = 'many'"),
        ("machine.device=tpu", "machine.device = 'tpu'"),
        ("optimizer.warmup=2", "training: warmup must be in [0, 1), not 2"),
        ("network=5", "network is a table"),
        ("privacy.steps.more=5", "--set privacy.steps.more: steps is a value"),
        ("nonsense", "--set takes key=value"),
    ],
)
def test_a_bad_setting_is_named_with_its_path(override, says):
    with pytest.raises(InputError) as error:
        load_config("digits", overrides=[override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_preset_gets_a_suggestion():
    with pytest.raises(InputError, match="did you mean fashion-mnist"):
        load_config("fashion-mnis")


def test_a_path_becomes_a_data_source_and_a_toml_file_is_read(tmp_path):
    (tmp_path / "photos").mkdir()
    assert load_config(str(tmp_path / "photos")).data == Data(source=str(tmp_path / "photos"))
    (tmp_path / "c.toml").write_text('[data]\nsource = "digits"\n[privacy]\nsteps = 3\n')
    assert load_config(str(tmp_path / "c.toml")).privacy.steps == 3
    (tmp_path / "c.toml").write_text("[data\n")
    with pytest.raises(InputError, match="not valid TOML"):
        load_config(str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text("[privacy]\nsteps = 3\n")
    with pytest.raises(InputError, match="data is missing"):
        load_config(str(tmp_path / "c.toml"))


def test_a_declared_size_is_add_or_remove_and_an_undeclared_one_is_public_and_replaced():
    declared = load_config(
        "digits", overrides=["privacy.dataset_size=1000", "privacy.steps=5", "privacy.epsilon=1"]
    ).privacy
    plan = declared.plan(lambda: pytest.fail("the data must not be counted"))
    assert isinstance(plan, Plan)
    assert (plan.dataset_size, plan.relation) == (1000, "add_or_remove_one")
    undeclared = decode(type(declared), {"steps": 5, "delta": 1e-5, "epsilon": 1.0})
    plan = undeclared.plan(lambda: 640)
    assert isinstance(plan, Plan)
    assert (plan.dataset_size, plan.relation, plan.expected_batch_size) == (640, "replace_special", 64)


def test_the_null_object_is_a_setting_that_keeps_size_batch_and_steps():
    privacy = load_config("digits", overrides=["privacy.kind=non-private"]).privacy
    assert privacy.plan(lambda: 0) == NonPrivate.dp_sgd(dataset_size=1438, expected_batch_size=256, steps=300)


@pytest.mark.parametrize("key", ["epsilon", "delta", "max_grad_norm"])
def test_a_claim_that_a_non_private_run_cannot_make_is_refused(key):
    with pytest.raises(InputError, match=f"unknown key privacy.{key}"):
        load_config("digits", overrides=["privacy.kind=non-private", f"privacy.{key}=1e-5"])


def test_naming_the_kind_that_a_preset_has_anyway_changes_nothing():
    assert load_config("digits", overrides=["privacy.kind=dp-sgd"]) == load_config("digits")


@pytest.mark.parametrize("kind", ["dp-sgd", "non-private"])
def test_a_batch_size_of_zero_is_refused_and_not_replaced(kind):
    privacy = load_config("digits", overrides=["privacy.expected_batch_size=0", f"privacy.kind={kind}"]).privacy
    with pytest.raises(InputError, match="expected_batch_size must be"):
        privacy.plan(lambda: 0)


def test_only_the_sampler_can_be_set_after_training():
    settings = {"sampler": encode(DDIM(steps=9)), "samplers": {"accuracy": encode(Churn(s_churn=5))}}
    assert choose_sampler(settings, overrides=["sampler.steps=11"]) == DDIM(steps=11)
    assert choose_sampler(settings, overrides=["sampler.s_churn=3", "sampler.kind=churn"]) == Churn(s_churn=3)
    assert choose_sampler(settings, name="accuracy", overrides=["sampler.steps=11"]) == Churn(steps=11, s_churn=5)
    with pytest.raises(InputError, match=r"only sampler\.\*"):
        choose_sampler(settings, overrides=["privacy.epsilon=3"])
    with pytest.raises(InputError, match="no sampler called 'acuracy': did you mean accuracy"):
        choose_sampler(settings, name="acuracy")


def test_named_samplers_survive_the_round_trip_and_are_decoded_strictly():
    table = {"data": {"source": "digits"}, "samplers": {"fid": {"kind": "churn", "guidance": 1.0}}}
    config = decode(Config, table)
    assert config.samplers == {"fid": Churn(guidance=1.0)}
    assert decode(Config, encode(config)) == config
    table["samplers"]["fid"]["guidence"] = 1.0
    with pytest.raises(InputError, match=r"unknown key samplers.fid.guidence: did you mean guidance"):
        decode(Config, table)


def test_an_array_becomes_a_tuple_and_survives_the_round_trip(tmp_path):
    (tmp_path / "c.toml").write_text('data.source = "digits"\nnetwork = {kind = "unet", multipliers = [1, 1, 2, 2]}\n')
    config = load_config(str(tmp_path / "c.toml"), overrides=["network.attention=[]"])
    assert config.network == UNet(multipliers=(1, 1, 2, 2), attention=())
    assert decode(Config, tomllib.loads(tomli_w.dumps(encode(config)))) == config
    with pytest.raises(InputError, match=r"network\.attention = 7: input should be a valid tuple"):
        load_config(str(tmp_path / "c.toml"), overrides=["network.attention=7"])


def test_a_table_in_part_keeps_the_other_defaults():
    levels = load_config(
        "fashion-mnist-cpu-epsilon-1", overrides=["preconditioning.noise_levels.std=1.0"]
    ).preconditioning
    assert (levels.noise_levels.mean, levels.noise_levels.std) == (-0.4, 1.0)
    config = decode(Config, {"data": {"source": "x"}, "preconditioning": {"noise_levels": {"mean": -0.5}}})
    assert isinstance(config.preconditioning, MomentMatched)


def test_another_preconditioning_drops_what_needs_a_prior():
    config = load_config("fashion-mnist-cpu", overrides=["preconditioning.kind=edm"])
    assert config.prior is None
    assert "prior" not in config.samplers


def test_a_plan_comes_back_to_the_letter():
    """A journal counts for a plan as it is written: whole numbers must stay whole numbers."""
    plan = DPSGD(dataset_size=60, expected_batch_size=20, steps=4, noise_multiplier=2, max_grad_norm=1, delta=1e-3)
    assert repr(decode_plan(encode(plan))) == repr(plan)


def test_facts_of_data_declared_public_are_read_and_private_ones_declared(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(12) % 3)
    with pytest.raises(InputError, match="must not be read off private labels"):
        Data(source=str(tmp_path / "x.npz")).open()
    opened = Data(source=str(tmp_path / "x.npz"), public=True).open()
    assert (opened.num_classes, opened.class_names, opened.public) == (3, ("0", "1", "2"), True)
    named = Data(source=str(tmp_path / "x.npz"), public=True, name="ours").open()
    assert (named.name, named.public, named.num_classes) == ("ours", True, 3)
    declared = Data(source=str(tmp_path / "x.npz"), public=True, num_classes=5).open()
    assert declared.num_classes == 5
