import math

import numpy as np
import pytest
import tomli_w

from dpdm.config import (
    Data,
    Privacy,
    Public,
    choose_sampler,
    decode,
    decode_plan,
    encode,
    encode_config,
    load_config,
    preset_names,
)
from dpdm.diffusion import DDIM, EDM, Churn, MomentMatched
from dpdm.methods import Diffusion, PriorAlone
from dpdm.methods.prior import PRIOR_SUMS
from dpdm.methods.registry import METHODS
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import DPSGD, NonPrivate, Plan
from dpdm.types import InputError


@pytest.fixture
def load_table(tmp_path):
    """Return what reads a table as the file that holds it is read."""

    def load(table, **asked):
        (tmp_path / "table.toml").write_text(tomli_w.dumps(table))
        return load_config(str(tmp_path / "table.toml"), **asked)

    return load


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_decodes_and_survives_the_round_trip(name, load_table):
    config = load_config(name)
    assert load_table(encode_config(config)) == config


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
    for_a_laptop = [
        "cifar10-cpu",
        "digits",
        "fashion-mnist-cpu",
        "fashion-mnist-cpu-epsilon-0.2",
        "fashion-mnist-cpu-epsilon-1",
        "mnist-cpu",
        "mnist-cpu-without-prior",
    ]
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
def test_a_presets_epsilon_and_size_are_for_its_own_images_alone(source, way):
    """The kind: settings that somebody chose for other images."""
    override = way.format(source)
    with pytest.raises(InputError, match="epsilon is missing"):
        load_config("digits", overrides=[override]).plan(lambda: 100)
    other = load_config("digits", overrides=["privacy.epsilon=2", override]).privacy
    assert (other.epsilon, other.dataset_size) == (2.0, None), "a claim would state a number that nobody declared"
    declared = ["privacy.epsilon=2", override, "privacy.dataset_size=300"]
    assert load_config("digits", overrides=declared).privacy.dataset_size == 300
    own = load_config("digits", overrides=["data.source=digits"]).privacy
    assert (own.epsilon, own.dataset_size) == (10.0, 1438)


def test_a_presets_batch_gives_way_where_fewer_images_are_declared():
    small = ["privacy.epsilon=2", "privacy.dataset_size=200"]
    config = load_config("digits", overrides=small)
    assert config.privacy.expected_batch_size is None
    assert config.plan(lambda: 0).expected_batch_size == 64, "the method's own"
    own = load_config("digits", overrides=[*small, "privacy.expected_batch_size=201"])
    with pytest.raises(InputError, match="expected_batch_size"):
        own.plan(lambda: 0)
    assert load_config("digits", overrides=["privacy.dataset_size=256"]).privacy.expected_batch_size == 256


def test_a_table_is_left_out_by_none():
    assert load_config("mnist-cpu").method.codec is not None
    assert load_config("mnist-cpu", overrides=["codec=none"]).method.codec is None
    assert load_config("digits", overrides=["codec=none", "start=none"]).method.codec is None
    assert load_config("mnist-cpu-without-prior", overrides=["start=none"]).method.start is None
    assert load_config("mnist-cpu", overrides=["codec.source=starts/codec"]).method.codec.source == "starts/codec"
    for missing in ("prior", "network", "colour"):
        with pytest.raises(InputError):
            load_config("mnist-cpu", overrides=[f"{missing}=none"])
    with pytest.raises(InputError, match="x holds no diffusers pipeline"):  # and not that its codec is one too many
        load_config("mnist-cpu", overrides=["network.kind=diffusers", "network.source=x"])


def test_a_declared_name_stands_for_those_of_the_files(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("st-mary", "st-john"):
        np.savez(tmp_path / f"{name}.npz", images=rng.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    source = f"{tmp_path / 'st-mary.npz'}+{tmp_path / 'st-john.npz'}"
    opened = Public(source=source, name="scans").open((1, 8, 8), (), "crop")
    assert [each.name for each in (opened, *opened.made_of)] == ["scans", "scans, set 1", "scans, set 2"]


def test_overrides_reach_every_level_and_parse_as_toml_or_text():
    config = load_config(
        "digits",
        overrides=["privacy.steps=7", "machine.precision=float32", "preconditioning.noise_levels.mean=-0.5"],
    )
    assert config.privacy.steps == 7
    assert config.machine.precision == "float32"
    assert config.method.preconditioning.noise_levels.mean == -0.5


def test_a_new_kind_drops_the_settings_of_the_old_one_whatever_the_order():
    config = load_config("fashion-mnist-cpu", overrides=["network.width=64", "network.kind=mlp"])
    assert config.method.network == MLP(width=64)
    assert isinstance(load_config("digits", overrides=["network.kind=compact-unet"]).method.network, CompactUNet)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("privacy.stepz=3", "unknown key privacy.stepz: did you mean steps?"),
        ("privacyy.steps=3", "unknown key privacyy (method = diffusion): did you mean privacy?"),
        (
            "network.kind=gan",
            "network.kind must be one of compact-unet, mlp, unet, diffusers, text-to-image",
        ),
        ("privacy.steps=many", "privacy.steps = 'many'"),
        ("machine.device=tpu", "machine.device = 'tpu'"),
        ("optimizer.warmup=2", "optimizer: warmup must be in [0, 1), not 2"),
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


@pytest.mark.proof
def test_a_declared_size_is_add_or_remove_and_an_undeclared_one_is_public_and_replaced():
    declared = load_config(
        "digits", overrides=["privacy.dataset_size=1000", "privacy.steps=5", "privacy.epsilon=1"]
    ).privacy
    plan = declared.plan(Diffusion(preconditioning=EDM()), lambda: pytest.fail("the data must not be counted"))
    assert isinstance(plan, Plan)
    assert (plan.dataset_size, plan.relation) == (1000, "add_or_remove_one")
    undeclared = decode(type(declared), {"steps": 5, "delta": 1e-5, "epsilon": 1.0})
    plan = undeclared.plan(Diffusion(preconditioning=EDM()), lambda: 640)
    assert isinstance(plan, Plan)
    assert (plan.dataset_size, plan.relation, plan.expected_batch_size) == (640, "replace_special", 64)


def test_the_null_object_is_a_setting_that_keeps_size_batch_and_steps():
    config = load_config("digits", overrides=["privacy.kind=non-private"])
    sums = dict.fromkeys(PRIOR_SUMS)
    expected = NonPrivate.dp_sgd(releases=sums, dataset_size=1438, expected_batch_size=256, steps=300)
    plan = config.plan(lambda: 0)
    assert [(r.name, r.count) for r in plan.releases] == [(r.name, r.count) for r in expected.releases]
    assert (plan.dataset_size, plan.expected_batch_size, plan.max_grad_norm) == (1438, 256, math.inf)


@pytest.mark.parametrize("key", ["epsilon", "delta", "max_grad_norm"])
def test_a_claim_that_a_non_private_run_cannot_make_is_refused(key):
    with pytest.raises(InputError, match=f"unknown key privacy.{key}"):
        load_config("digits", overrides=["privacy.kind=non-private", f"privacy.{key}=1e-5"])


def test_naming_the_kind_that_a_preset_has_anyway_changes_nothing():
    assert load_config("digits", overrides=["privacy.kind=dp-sgd"]) == load_config("digits")


@pytest.mark.parametrize("kind", ["dp-sgd", "non-private"])
def test_a_batch_size_of_zero_is_refused_and_not_replaced(kind):
    with pytest.raises(InputError, match="expected_batch_size must be"):
        load_config("digits", overrides=["privacy.expected_batch_size=0", f"privacy.kind={kind}"])


def test_only_the_sampler_can_be_set_after_training():
    settings = {"sampler": encode(DDIM(steps=9)), "samplers": {"accuracy": encode(Churn(s_churn=5))}}
    assert choose_sampler(settings, overrides=["sampler.steps=11"]) == DDIM(steps=11)
    assert choose_sampler(settings, overrides=["sampler.s_churn=3", "sampler.kind=churn"]) == Churn(s_churn=3)
    assert choose_sampler(settings, name="accuracy", overrides=["sampler.steps=11"]) == Churn(steps=11, s_churn=5)
    with pytest.raises(InputError, match=r"only sampler\.\*"):
        choose_sampler(settings, overrides=["privacy.epsilon=3"])
    with pytest.raises(InputError, match="no sampler called 'acuracy': did you mean accuracy"):
        choose_sampler(settings, name="acuracy")


def test_named_samplers_survive_the_round_trip_and_are_decoded_strictly(load_table):
    table = {"data": {"source": "digits"}, "samplers": {"fid": {"kind": "churn", "guidance": 1.0}}}
    config = load_table(table)
    assert config.method.samplers == {"fid": Churn(guidance=1.0)}
    assert load_table(encode_config(config)) == config
    table["samplers"]["fid"]["guidence"] = 1.0
    with pytest.raises(InputError, match=r"unknown key samplers.fid.guidence: did you mean guidance"):
        load_table(table)


def test_an_array_becomes_a_tuple_and_survives_the_round_trip(tmp_path, load_table):
    (tmp_path / "c.toml").write_text('data.source = "digits"\nnetwork = {kind = "unet", multipliers = [1, 1, 2, 2]}\n')
    config = load_config(str(tmp_path / "c.toml"), overrides=["network.attention=[]"])
    assert config.method.network == UNet(multipliers=(1, 1, 2, 2), attention=())
    assert load_table(encode_config(config)) == config
    with pytest.raises(InputError, match=r"network\.attention = 7: input should be a valid tuple"):
        load_config(str(tmp_path / "c.toml"), overrides=["network.attention=7"])


def test_a_table_in_part_keeps_the_other_defaults(load_table):
    levels = load_config("digits", overrides=["preconditioning.noise_levels.std=1.0"]).method.preconditioning
    assert (levels.noise_levels.mean, levels.noise_levels.std) == (-0.4, 1.0)
    config = load_table({"data": {"source": "x"}, "preconditioning": {"noise_levels": {"mean": -0.5}}})
    assert isinstance(config.method.preconditioning, MomentMatched)


def test_another_preconditioning_drops_what_needs_a_prior(load_table):
    matched = {"kind": "matched-solver"}
    table = encode_config(load_config("fashion-mnist-cpu")) | {"sampler": matched, "samplers": {"near": matched}}
    method = load_table(table, overrides=["preconditioning.kind=edm"]).method
    assert (method.prior, method.samplers, method.sampler) == (None, {}, Diffusion().sampler)


@pytest.mark.parametrize("target", ["fashion-mnist-cpu", "fashion-mnist", "digits", "fashion-mnist-cpu-epsilon-1"])
def test_another_method_keeps_images_machine_epsilon_and_delta_and_takes_the_rest_from_its_own_preset(target):
    asked, config = load_config(target), load_config(target, method="prior")
    assert isinstance(config.method, PriorAlone)
    assert (config.data, config.machine, config.seed) == (asked.data, asked.machine, asked.seed)
    assert config.privacy == Privacy(
        epsilon=asked.privacy.epsilon, delta=asked.privacy.delta, dataset_size=asked.privacy.dataset_size
    )


def test_a_method_without_steps_spends_all_of_epsilon_on_its_sums():
    config = load_config("fashion-mnist-cpu-epsilon-1", method="prior")
    plan = config.plan(lambda: pytest.fail("the data must not be counted"))
    assert (plan.steps, [release.name for release in plan.full[:4]]) == (0, [*PRIOR_SUMS])
    assert 0.99 < plan.epsilon() <= 1


@pytest.mark.parametrize("method", ["prior", "diffusion"])
def test_a_run_of_another_method_survives_the_round_trip(method, load_table):
    config = load_config("digits", method=method)
    assert load_table(encode_config(config)) == config


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"method": "piror"},
            f"method = 'piror' is none of {', '.join(METHODS)}: did you mean prior?",
        ),
        ({"overrides": ["method=7"]}, "method = 7 is none of diffusion, prior, evolution"),
        ({"method": "prior", "overrides": ["network.width=3"]}, "unknown key network (method = prior)"),
        ({"method": "prior", "overrides": ["prior.centers=3"]}, "unknown key prior.centers: did you mean centres?"),
    ],
)
def test_a_method_that_is_none_and_a_table_of_another_are_refused(asked, says):
    with pytest.raises(InputError) as error:
        load_config("digits", **asked)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "override", "says"),
    [
        ("diffusion", "privacy.steps=0", "privacy.steps = 0 trains no network: take the method prior"),
        ("prior", "privacy.steps=5", "the method prior takes no steps: leave out privacy.steps"),
        ("prior", "privacy.expected_batch_size=64", "the method prior takes no steps: leave out privacy.steps"),
        ("prior", "privacy.max_grad_norm=2.0", "privacy.expected_batch_size and privacy.max_grad_norm"),
        ("aggregated-embeddings", "privacy.max_grad_norm=2.0", "leave out privacy.steps and privacy.max_grad_norm"),
    ],
)
def test_steps_that_a_method_has_no_use_for_are_refused_and_never_ignored(method, override, says):
    config = load_config("digits", method=method, overrides=[override])
    with pytest.raises(InputError) as error:
        config.plan(lambda: 0)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_run_writes_is_read_as_settings(load_table):
    """Beside what was asked for, a run writes declared facts, its plan, its ε and where the images were."""
    config = load_config("digits")
    facts = {"name": "digits", "shape": [1, 8, 8], "class_names": []}
    follows = {
        "facts": facts,
        "plan": encode(Plan.dp_sgd(dataset_size=60, steps=4, noise_multiplier=2.0, delta=1e-3)),
        "opened": "digits",
        "epsilon": 10.0,
    }
    assert load_table({**encode_config(config), **follows}) == config


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
