"""Features and classifiers of one's own: what fits is used, what does not is refused at once, in one line."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.evaluation import (
    CNN,
    MLP,
    ClassifierFeatures,
    Pixels,
    UtilityProtocol,
    compare_features,
    evaluate_fidelity,
    evaluate_utility,
    fidelity,
    image_features,
    train_classifier,
    utility,
)
from dpdm.types import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
IMAGES, REFERENCE = (RNG.integers(0, 256, (60, 6, 6, 1), dtype=np.uint8) for _ in range(2))
LABELS = np.arange(60) % 3


def pooled(images):
    return torch.from_numpy(images).float().flatten(1)[:, :4] / 255


class Fails:
    def __call__(self, images):
        raise KeyError("no\nsuch layer")


class Changes:
    def __call__(self, images):
        found = pooled(images)
        images[:] = 0
        return found


@dataclasses.dataclass
class Own:
    """Features that are as they should be, but for what a test changes."""

    function: object = pooled
    name: object = "four pixels"
    digest: object = "no weights, x / 255"

    def build(self):
        return self.function


@dataclasses.dataclass
class BuildFails(Own):
    def build(self):
        raise RuntimeError("no weights here")


class NoDigest:
    name = "four pixels"

    def build(self):
        return pooled


class NoBuild:
    name = digest = "four pixels"


NO_FEATURES = {
    "nothing": (None, "must be a value such as Pixels"),
    "a name": ("pixels", "features_by_name"),
    "a function": (pooled, "which has no build()"),
    "a class": (Own, "write Own(...)"),
    "one of ours, as a class": (Pixels, "write Pixels(...)"),
    "no digest": (NoDigest(), "digest of NoDigest must be a printable text"),
    "no build": (NoBuild(), "which has no build()"),
    "a name that is a number": (Own(name=3), "name of Own must be a printable text"),
    "an empty name": (Own(name=" "), "name of Own must be a printable text"),
    "an endless name": (Own(name="x" * 201), "at most 200 bytes"),
    "an endless name of wide letters": (Own(name="ε" * 101), "at most 200 bytes"),
    "a name that steers the terminal": (Own(name="\x1b[2Jx"), "printable"),
    "a digest of two lines": (Own(digest="a\nb"), "digest of Own must be a printable text"),
    "build fails": (BuildFails(), "build of features 'four pixels' failed: RuntimeError: no weights here"),
    "build gives no function": (Own(function=torch.zeros(3)), "must return a function, not a value of type Tensor"),
    "it fails": (Own(function=Fails()), "failed: KeyError: 'no\\nsuch layer'"),
    "an array": (Own(function=lambda x: pooled(x).numpy()), "not a value of type ndarray"),
    "nothing comes back": (Own(function=lambda x: None), "not None"),
    "whole numbers": (Own(function=lambda x: pooled(x).long()), "not torch.int64"),
    "complex numbers": (Own(function=lambda x: pooled(x) + 0j), "not torch.complex64"),
    "one number an image": (Own(function=lambda x: pooled(x)[:, 0]), "a tensor of shape (1,)"),
    "one feature": (Own(function=lambda x: pooled(x)[:, :1]), "not 1 of them an image"),
    "no feature": (Own(function=lambda x: pooled(x)[:, :0]), "not 0 of them an image"),
    "a map, not a vector": (Own(function=lambda x: pooled(x)[:, :, None]), "a tensor of shape (1, 4, 1)"),
    "one vector for all": (Own(function=lambda x: pooled(x).mean(0, keepdim=True)), "a tensor of shape (1, 4)"),
    "the wrong way round": (Own(function=lambda x: pooled(x).T), "a tensor of shape (4, 1)"),
    "as many features as images": (
        Own(function=lambda x: pooled(x) @ torch.ones(4, len(x) + 1)),
        "a tensor of shape (3, 4)",
    ),
    "not finite": (Own(function=lambda x: pooled(x).log() * torch.inf), "not finite"),
    "drawn anew": (Own(function=lambda x: torch.rand(len(x), 3)), "other numbers when it is looked at again"),
    "normalised by the batch": (
        Own(function=lambda x: pooled(x) - pooled(x).mean(0) + 0.01),
        "other numbers when it is looked at again among others",
    ),
    "the images are changed": (Own(function=Changes()), "work on a copy"),
}


@pytest.mark.parametrize(("features", "said"), NO_FEATURES.values(), ids=NO_FEATURES)
def test_features_that_are_none_are_refused_at_once_in_one_line(features, said, monkeypatch):
    """A wrong object is refused before anything is computed of the images."""
    monkeypatch.setattr(fidelity, "image_features", lambda *_, **__: pytest.fail("features were computed"))
    calls = [
        lambda: evaluate_fidelity(IMAGES, REFERENCE, features=features),
        lambda: image_features(IMAGES, features),
    ]
    for call in calls:
        with pytest.raises(InputError) as refused:
            call()
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400


def test_features_that_are_given_as_numbers_need_a_name_and_a_digest():
    for features in (Own(name="\n"), NoDigest(), Own):
        with pytest.raises(InputError):
            compare_features(pooled(IMAGES), pooled(REFERENCE), features=features, resamples=0)


def test_features_of_ones_own_are_used_and_recorded():
    found = evaluate_fidelity(IMAGES, REFERENCE, features=Own(), resamples=0)
    assert (found.features, found.digest) == ("four pixels", "no weights, x / 255")
    again = compare_features(pooled(IMAGES), pooled(REFERENCE), features=Own(), resamples=0)
    assert found.frechet.value == pytest.approx(again.frechet.value)


def test_features_that_fail_on_some_images_only_say_so_in_one_line():
    """What made-up images do not show, the real ones do: the line says what was wrong, and of how many images."""
    late = Own(function=lambda x: pooled(x) / (0 if len(x) > 3 else 1))
    with pytest.raises(InputError, match=r"features 'four pixels' of 60 images must be finite"):
        image_features(IMAGES, late)
    with pytest.raises(InputError, match="there are no images"):
        image_features(IMAGES[:0], Own())


class Net(nn.Module):
    """A module that is as it should be, but for what it does with its logits."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.layer = nn.Linear(36, 3)
        self.change = change

    def forward(self, x):
        return self.change(self.layer(x.flatten(1)))


@dataclasses.dataclass
class OwnClassifier:
    make: object

    def build(self, shape, num_classes):
        return self.make()


def fails():
    raise RuntimeError("no\nweights")


def frozen():
    return Net().requires_grad_(False)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no way back")


KEPT = Net()


class NoBuildAtAll:
    pass


class OneArgument:
    def build(self, shape):
        return Net()


NO_CLASSIFIER = {
    "nothing": (None, "which has no build()"),
    "a class": (CNN, "write CNN(...)"),
    "a module": (Net(), "which has no build()"),
    "no build": (NoBuildAtAll(), "which has no build()"),
    "build of one argument": (OneArgument(), "build of classifier 'own' failed: TypeError"),
    "build fails": (OwnClassifier(fails), "build of classifier 'own' failed: RuntimeError: no weights"),
    "build gives a function": (OwnClassifier(lambda: pooled), "must return a torch.nn.Module"),
    "build gives a class": (OwnClassifier(lambda: Net), "must return a torch.nn.Module, not the class Net"),
    "build gives what it keeps": (OwnClassifier(lambda: KEPT), "a new module each time"),
    "nothing to be trained": (OwnClassifier(frozen), "no weight to be trained"),
    "nothing that learns": (OwnClassifier(lambda: Net(lambda x: x.detach())), "failed: RuntimeError"),
    "too few logits": (
        OwnClassifier(lambda: Net(lambda x: x[:, :2])),
        "shape (1, 3), not torch.float32 of shape (1, 2)",
    ),
    "too many logits": (OwnClassifier(lambda: Net(lambda x: torch.cat([x, x], 1))), "of shape (1, 6)"),
    "one answer for all": (OwnClassifier(lambda: Net(lambda x: x.mean(0, keepdim=True))), "of shape (1, 3)"),
    "one image loses its place": (OwnClassifier(lambda: Net(lambda x: x.squeeze(0))), "of shape (3,)"),
    "a pair": (OwnClassifier(lambda: Net(lambda x: (x, x))), "not a value of type tuple"),
    "answers, not logits": (OwnClassifier(lambda: Net(lambda x: x.argmax(1))), "not torch.int64"),
    "not finite": (OwnClassifier(lambda: Net(lambda x: x * torch.nan)), "before it has learnt anything"),
    "it fails": (OwnClassifier(lambda: nn.Linear(35, 3)), "failed: RuntimeError"),
    "no way back": (OwnClassifier(lambda: Net(NoGradient.apply)), "failed: NotImplementedError: no way back"),
}


def judged(classifiers, **changes):
    protocol = UtilityProtocol(epochs=1, batch_size=16)
    arguments = {"num_classes": 3, "protocol": protocol, "classifiers": classifiers} | changes
    return evaluate_utility(IMAGES, LABELS, REFERENCE, LABELS, **arguments)


@pytest.mark.parametrize(("classifier", "said"), NO_CLASSIFIER.values(), ids=NO_CLASSIFIER)
def test_classifiers_that_are_none_are_refused_before_any_is_trained(classifier, said, monkeypatch):
    """A wrong object is refused in one line, though others beside it are right."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("a classifier was trained"))
    calls = [
        lambda: judged({"mlp": MLP(), "own": classifier}),
        lambda: train_classifier(IMAGES, LABELS, num_classes=3, classifier=classifier),
    ]
    for call, name in zip(calls, ("own", "the classifier"), strict=True):
        with pytest.raises(InputError) as refused:
            call()
        assert said.replace("'own'", repr(name)) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_classifier_that_cannot_learn_from_one_image_is_refused_where_it_would_have_to():
    """Of 54 images in batches of 53 the last is alone, which batch normalisation does not take."""
    own = OwnClassifier(lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3)))
    with pytest.raises(InputError, match=r"learning from 1 images|on images of shape .1, 1, 6, 6.") as refused:
        judged({"own": own}, protocol=UtilityProtocol(epochs=1, batch_size=53))
    assert "\n" not in str(refused.value)
    assert judged({"own": own})["own"].num_test == 60


def test_a_classifier_that_gives_something_else_while_it_learns_is_refused_at_its_first_batch():
    class Auxiliary(Net):
        def forward(self, x):
            return (super().forward(x),) * 2 if self.training else super().forward(x)

    with pytest.raises(InputError, match=r"classifier 'own' must give floating-point logits of shape .16, 3."):
        judged({"own": OwnClassifier(Auxiliary)})


@pytest.mark.parametrize(
    ("classifiers", "said"),
    [
        ([MLP()], "a dict from names to classifiers, not a value of type list"),
        ({}, "a dict from names to classifiers"),
        (MLP(), "a dict from names to classifiers"),
        ({3: MLP()}, "name of a classifier must be a printable text"),
        ({"": MLP()}, "name of a classifier must be a printable text"),
        ({"a\x1b[1m": MLP()}, "name of a classifier must be a printable text"),
        ({"x" * 201: MLP()}, "at most 200 bytes"),
        ({"mlp": MLP(), "MLP ": MLP()}, "look alike"),
    ],
)
def test_names_of_classifiers_are_printable_bounded_and_told_apart(classifiers, said):
    with pytest.raises(InputError) as refused:
        judged(classifiers)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("protocol", ["quick", UtilityProtocol, 3])
def test_a_protocol_that_is_none_is_refused(protocol):
    with pytest.raises(InputError, match="protocol must be a UtilityProtocol"):
        judged({"mlp": MLP()}, protocol=protocol)


def test_trying_a_classifier_changes_no_score(monkeypatch):
    own = {"own": OwnClassifier(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 3)))}
    tried = judged(own)
    monkeypatch.setattr(utility, "check_learns", lambda *_, **__: None)
    assert judged(own) == tried


def test_features_of_a_classifier_without_a_last_linear_layer_are_refused():
    features = ClassifierFeatures(images=IMAGES, labels=LABELS, num_classes=3, classifier=OwnClassifier(Net))
    with pytest.raises(InputError, match="OwnClassifier has no last linear layer"):
        image_features(REFERENCE, features)
