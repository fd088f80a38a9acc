"""The 8 x 8 handwritten digits that come with scikit-learn: a data set that needs no network and no file."""

import numpy as np

from dpdm.data.dataset import ImageDataset
from dpdm.data.layout import Split, choose_part


def load_digits(split: Split = "train") -> ImageDataset:
    """Return a part of scikit-learn's 1797 digits: every fifth (index % 5 == 4) is `test`, the rest `train`.

    Source: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository; 17 levels of grey.
    """
    choose_part(("train", "test"), split, "digits")
    # Imported here because it takes a second, which no other source should pay.
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    chosen = (np.arange(len(digits.images)) % 5 == 4) == (split == "test")
    levels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ImageDataset(images=levels[..., np.newaxis], labels=digits.target[chosen], num_classes=10, name="digits")
