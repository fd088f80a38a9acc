import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dpdm.data import ImageDataset
from dpdm.evaluation import (
    CLASSIFIERS,
    CNN,
    MLP,
    QUICK,
    LogReg,
    Pixels,
    UtilityProtocol,
    evaluate_utility,
    image_features,
    train_classifier,
)
from dpdm.types import InputError, images_to_tensor


@pytest.fixture(autouse=True)
def one_thread():
    """Modules this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SHORT = UtilityProtocol(epochs=4, batch_size=32, learning_rate=3e-3)
FAST = {"logreg": LogReg(), "mlp": MLP()}


def blobs(number, *, seed, num_classes=3, size=8, channels=1):
    """Images of which the class is a bright stripe in dim noise: any classifier can learn them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, number)
    images = rng.integers(0, 120, (number, size, size, channels), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    return images, labels


def scrambled(number, *, seed):
    """Images of which the label says nothing."""
    images, labels = blobs(number, seed=seed)
    return images, np.random.default_rng(seed + 1).permutation(labels)


@dataclasses.dataclass
class Witness:
    """A classifier that notes which images it is shown, and whether it is being taught; each image names itself."""

    log: list[tuple[str, list[int]]] = dataclasses.field(default_factory=list)

    def build(self, shape, num_classes):
        log = self.log

        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, num_classes)

            def forward(self, x):
                names = x[:, 0, 0, :2].add(1).mul(127.5).round().long()
                log.append(("train" if self.training else "eval", (names[:, 0] * 256 + names[:, 1]).tolist()))
                return self.layer(x[:, 0, 0, :2])

        return Module()


def named(numbers):
    """Images whose first two pixels spell their number."""
    numbers = np.asarray(numbers)
    images = np.zeros((len(numbers), 2, 2, 1), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers // 256, numbers % 256
    return images


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (28, 28)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_takes_every_shape_of_images_and_gives_a_logit_for_each_class(name, size, channels):
    module = CLASSIFIERS[name].build((channels, *size), 7)
    assert module(torch.zeros(2, channels, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("classifier", "num_weights"),
    [
        (LogReg(), 784 * 10 + 10),
        (MLP(), 784 * 100 + 100 + 100 * 10 + 10),
        (CNN(), (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (3 * 3 * 128 * 10 + 10)),
    ],
)
def test_the_classifiers_have_the_sizes_of_the_paper(classifier, num_weights):
    module = classifier.build((1, 28, 28), 10)
    assert sum(weight.numel() for weight in module.parameters()) == num_weights


@pytest.mark.parametrize("channels", [1, 3])
def test_what_can_be_learnt_from_synthetic_images_scores_high_on_others_like_them(channels):
    train, test = blobs(600, seed=0, channels=channels), blobs(200, seed=1, channels=channels)
    scores = evaluate_utility(*train, *test, num_classes=3, protocol=SHORT)
    assert list(scores) == ["logreg", "mlp", "cnn"]
    assert min(score.accuracy for score in scores.values()) > 0.95


def test_synthetic_images_that_teach_the_wrong_classes_score_near_zero():
    images, labels = blobs(400, seed=0)
    scores = evaluate_utility(
        images, (labels + 1) % 3, *blobs(200, seed=1), num_classes=3, protocol=SHORT, classifiers=FAST
    )
    assert max(score.accuracy for score in scores.values()) < 0.1


def test_confusion_has_a_row_for_each_true_class_and_a_column_for_each_answer():
    images, labels = blobs(400, seed=0)
    test_images, test_labels = blobs(201, seed=1)
    arrays = images, (labels + 1) % 3, test_images, test_labels
    score = evaluate_utility(*arrays, num_classes=4, protocol=SHORT, classifiers=FAST)["mlp"]
    confusion = np.array(score.confusion)
    assert confusion.sum(axis=1).tolist() == np.bincount(test_labels, minlength=4).tolist()
    assert confusion.trace() == round(score.accuracy * 201)
    taught = sum(confusion[true, (true + 1) % 3] for true in range(3))  # every class is answered as the next one
    assert taught > 0.9 * 201


@pytest.mark.parametrize("classifier", [CNN(), MLP()])
def test_a_classifier_trained_alone_answers_as_the_one_that_is_scored(classifier):
    images, labels = scrambled(200, seed=0)
    test_images, test_labels = scrambled(300, seed=5)
    arguments = {"num_classes": 3, "protocol": SHORT, "seed": 2}
    module = train_classifier(images, labels, classifier=classifier, **arguments)
    answers = module(images_to_tensor(test_images)).argmax(1).numpy()
    scores = evaluate_utility(images, labels, test_images, test_labels, classifiers={"it": classifier}, **arguments)
    assert (answers == test_labels).mean() == scores["it"].accuracy


def test_the_same_seed_gives_the_same_scores_and_another_seed_another_classifier():
    data = (*scrambled(200, seed=0), *scrambled(500, seed=5))
    first, again, other = (evaluate_utility(*data, num_classes=3, protocol=SHORT, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert all(first[name] != other[name] for name in CLASSIFIERS)


def test_a_score_does_not_depend_on_which_other_classifiers_are_asked_for():
    data = (*scrambled(200, seed=0), *scrambled(500, seed=5))
    together = evaluate_utility(*data, num_classes=3, protocol=SHORT)
    alone = evaluate_utility(*data, num_classes=3, protocol=SHORT, classifiers={"cnn": CNN()})
    assert alone["cnn"] == together["cnn"]


def test_the_global_random_state_of_torch_is_left_as_it_was_and_has_no_influence():
    data = (*blobs(50, seed=0), *blobs(50, seed=1))
    outcomes = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        outcomes.append(evaluate_utility(*data, num_classes=3, protocol=SHORT))
        assert torch.equal(before, torch.random.get_rng_state())
    assert outcomes[0] == outcomes[1]


def test_dropout_falls_anew_in_every_update():
    drawn = []

    class Dropout(nn.Linear):
        def forward(self, x):
            if self.training:
                drawn.append(torch.rand(()).item())
            return super().forward(x.flatten(1))

    class Forgetful:
        def build(self, shape, num_classes):
            return Dropout(64, num_classes)

    evaluate_utility(
        *blobs(100, seed=0),
        *blobs(20, seed=1),
        num_classes=3,
        protocol=SHORT,
        classifiers={"forgetful": Forgetful()},
    )
    assert len(set(drawn)) == len(drawn) == 12


def test_one_tenth_of_the_synthetic_images_is_never_trained_on_and_all_others_are_in_every_epoch():
    witness = Witness()
    evaluate_utility(
        named(range(500)),
        np.arange(500) % 2,
        named(range(1000, 1020)),
        np.arange(20) % 2,
        num_classes=2,
        protocol=dataclasses.replace(SHORT, epochs=3),
        classifiers={"witness": witness},
    )
    taught = [number for mode, numbers in witness.log if mode == "train" for number in numbers]
    held_out = {number for mode, numbers in witness.log if mode == "eval" for number in numbers if number < 1000}
    assert len(held_out) == 50
    assert sorted(taught) == sorted([*(set(range(500)) - held_out)] * 3)


def test_test_images_are_looked_at_once_and_only_after_the_last_epoch():
    witness = Witness()
    evaluate_utility(
        named(range(100)),
        np.arange(100) % 2,
        named(range(1000, 3500)),
        np.arange(2500) % 2,
        num_classes=2,
        protocol=SHORT,
        classifiers={"witness": witness},
    )
    first_look = next(index for index, (_, numbers) in enumerate(witness.log) if numbers[0] >= 1000)
    assert [number for _, numbers in witness.log[first_look:] for number in numbers] == [*range(1000, 3500)]
    assert {mode for mode, _ in witness.log[first_look:]} == {"eval"}


def test_the_score_is_that_of_the_epoch_that_was_best_on_held_out_images_not_of_the_last():
    data = (*scrambled(300, seed=0), *scrambled(500, seed=5))
    long = dataclasses.replace(SHORT, epochs=12)
    score = evaluate_utility(*data, num_classes=3, protocol=long, classifiers=FAST)["mlp"]
    assert 1 < score.best_epoch < score.epochs == 12, "this test needs a run whose last epoch is not its best"
    stopped_there = dataclasses.replace(long, epochs=score.best_epoch)
    stopped = evaluate_utility(*data, num_classes=3, protocol=stopped_there, classifiers=FAST)["mlp"]
    assert dataclasses.replace(stopped, epochs=12) == score
    stopped_before = dataclasses.replace(long, epochs=score.best_epoch - 1)
    earlier = evaluate_utility(*data, num_classes=3, protocol=stopped_before, classifiers=FAST)["mlp"]
    assert earlier.held_out_accuracy <= score.held_out_accuracy


def test_of_equally_good_epochs_the_latest_is_kept():
    train = blobs(300, seed=0)
    score = evaluate_utility(
        *train, *train, num_classes=3, protocol=dataclasses.replace(SHORT, epochs=12), classifiers=FAST
    )["mlp"]
    stopped = evaluate_utility(
        *train, *train, num_classes=3, protocol=dataclasses.replace(SHORT, epochs=11), classifiers=FAST
    )["mlp"]
    assert stopped.held_out_accuracy == score.held_out_accuracy == 1, "this test needs a tie"
    assert (stopped.best_epoch, score.best_epoch) == (11, 12)


def test_a_decaying_learning_rate_starts_where_a_constant_one_is_and_ends_near_zero(monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def spy(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    for decay in (False, True):
        protocol = UtilityProtocol(epochs=4, batch_size=45, learning_rate=0.8, decay=decay)
        evaluate_utility(
            *blobs(100, seed=0),
            *blobs(20, seed=1),
            num_classes=3,
            protocol=protocol,
            classifiers={"logreg": LogReg()},
        )
    assert rates[:8] == [0.8] * 8
    assert rates[8:] == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_the_interval_is_as_wide_as_the_number_of_test_images_makes_it():
    images, labels = scrambled(1000, seed=7)
    for number in (100, 1000):
        score = evaluate_utility(
            *scrambled(100, seed=0), images[:number], labels[:number], num_classes=3, protocol=SHORT
        )["logreg"]
        standard_error = np.sqrt(score.accuracy * (1 - score.accuracy) / number)
        assert score.num_test == number
        assert score.low < score.accuracy < score.high
        assert score.high - score.low == pytest.approx(2 * 1.96 * standard_error, rel=0.12)


def test_progress_counts_every_update_once_up_to_the_total():
    seen = []
    evaluate_utility(
        *blobs(100, seed=0),
        *blobs(20, seed=1),
        num_classes=3,
        protocol=SHORT,
        classifiers=FAST,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 12) for done in range(1, 13)]  # 4 epochs of 90 images in batches of 32


@pytest.mark.parametrize("num_images", [10, 1_400, 5_000, 60_000])
def test_a_quick_look_makes_enough_updates_however_few_images_there_are(num_images):
    num_train, _ = QUICK.split(num_images)
    epochs = QUICK.num_epochs(num_images)
    updates_per_epoch = -(-num_train // QUICK.batch_size)
    assert epochs * updates_per_epoch >= QUICK.min_updates
    assert epochs == QUICK.epochs or (epochs - 1) * updates_per_epoch < QUICK.min_updates


def test_the_default_protocol_is_that_of_the_paper():
    assert UtilityProtocol() == UtilityProtocol(
        epochs=50, batch_size=128, learning_rate=3e-4, held_out=0.1, min_updates=0, decay=False
    )
    assert UtilityProtocol().num_epochs(10) == 50


@pytest.mark.parametrize(("num_images", "held_out"), [(2, 0.01), (2, 0.99), (10, 0.1), (60_000, 0.1)])
def test_neither_part_of_a_split_is_empty(num_images, held_out):
    num_train, num_held_out = UtilityProtocol(held_out=held_out).split(num_images)
    assert num_train + num_held_out == num_images
    assert min(num_train, num_held_out) >= 1


def test_arrays_that_may_not_be_written_to_are_fine():
    train, test = blobs(30, seed=0), blobs(30, seed=1)
    for array in (*train, *test):
        array.setflags(write=False)
    assert evaluate_utility(*train, *test, num_classes=3, protocol=SHORT, classifiers=FAST)


def test_labels_of_any_integer_type_give_the_same_scores():
    (images, labels), test = blobs(50, seed=0), blobs(30, seed=1)
    assert evaluate_utility(
        images, labels.astype(np.uint8), *test, num_classes=3, protocol=SHORT, classifiers=FAST
    ) == evaluate_utility(images, labels, *test, num_classes=3, protocol=SHORT, classifiers=FAST)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((20, 8), np.uint8)}, "synthetic images must be uint8"),
        ({"test_images": np.zeros((20, 8, 8, 1), np.float32)}, "test images must be uint8"),
        ({"test_images": np.zeros((20, 9, 8, 1), np.uint8)}, "8 × 8 × 1 and 9 × 8 × 1"),
        ({"test_images": np.zeros((20, 8, 8, 3), np.uint8)}, "8 × 8 × 1 and 8 × 8 × 3"),
        ({"labels": np.arange(19) % 3}, "20 synthetic images need as many"),
        ({"test_labels": np.zeros(20)}, "20 test images need as many integer"),
        ({"labels": np.arange(20) % 4}, "synthetic labels must lie in 0..2, but run from 0 to 3"),
        ({"test_labels": np.arange(20) % 3 - 1}, "test labels must lie in 0..2, but run from -1 to 1"),
        ({"labels": np.full(20, 2)}, "all synthetic images are of class 2"),
        ({"images": np.zeros((9, 8, 8, 1), np.uint8), "labels": np.arange(9) % 3}, "at least 10 synthetic"),
        ({"test_images": np.zeros((0, 8, 8, 1), np.uint8), "test_labels": np.arange(0)}, "at least 10 test"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused_in_one_line(change, said):
    images, labels = blobs(20, seed=0)
    labels[:3] = range(3)
    arrays = {"images": images, "labels": labels, "test_images": images, "test_labels": labels}
    with pytest.raises(InputError) as refused:
        evaluate_utility(**{**arrays, **change}, num_classes=3, protocol=SHORT, classifiers=FAST)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_training_that_diverges_is_told_instead_of_scored():
    wild = UtilityProtocol(epochs=2, batch_size=8, learning_rate=1e30)
    with pytest.raises(InputError, match="mlp diverged"):
        evaluate_utility(
            *blobs(50, seed=0), *blobs(50, seed=1), num_classes=3, protocol=wild, classifiers={"mlp": MLP()}
        )


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"held_out": 0.0}, {"held_out": 1.0}]
)
def test_a_protocol_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        UtilityProtocol(**wrong)


def digits():
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images * 255 / 16).round().astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], raw.target[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def test_a_quick_look_trains_well_even_on_a_thousand_small_images():
    scores = evaluate_utility(*digits(), num_classes=10, protocol=QUICK, classifiers=FAST)
    assert scores["logreg"].accuracy > 0.93
    assert scores["mlp"].accuracy > 0.95


@pytest.mark.slow
def test_a_quick_look_trains_the_cnn_well_too_on_a_thousand_small_images():
    scores = evaluate_utility(*digits(), num_classes=10, protocol=QUICK, classifiers={"cnn": CNN()})
    assert scores["cnn"].accuracy > 0.95


def test_grey_images_may_come_without_their_last_axis():
    """As `fit` takes them, and files."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(60) % 2
    once = UtilityProtocol(epochs=1)
    whole, flat = (
        evaluate_utility(i, labels, i, labels, num_classes=2, protocol=once, classifiers={"logreg": LogReg()})
        for i in (images, images[..., 0])
    )
    assert whole == flat
    assert torch.equal(image_features(images, Pixels()), image_features(images[..., 0], Pixels()))
    assert ImageDataset(images=images[..., 0], name="grey").shape == (1, 8, 8)
