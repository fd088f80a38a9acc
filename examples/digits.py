"""End-to-end DP: private digits in, publishable digits out, and how good they are. The demo of `make demo`.

python examples/digits.py [folder of the run]
"""

import sys
import time
from pathlib import Path

import dpdm
from dpdm.data import save_npz
from dpdm.evaluation import CNN, QUICK, one_row_per_class, side_by_side


def main(folder: Path) -> None:
    """Train on scikit-learn's digits at ε = 10, sample, evaluate, and draw the picture."""
    started = time.monotonic()
    config = dpdm.load_config("digits")
    train, test = config.data.open(), dpdm.open_dataset("digits:test")

    trainer = dpdm.Trainer.from_config(config, train, run=folder)
    steps = trainer.steps(train)
    try:
        while True:
            progress = next(steps)
            if progress.steps_spent % 50 == 0:
                left = (time.monotonic() - started) / progress.steps_spent * (progress.steps - progress.steps_spent)
                print(f"training: step {progress.steps_spent} of {progress.steps}, about {left:.0f} s left", flush=True)
    except StopIteration as end:
        release: dpdm.Release = end.value

    images, labels = release.sample(5000)
    save_npz(folder / "synthetic.npz", images, labels, num_classes=10)
    print("classifiers: training on synthetic digits, then on real ones", flush=True)
    cnn = {"cnn": CNN()}
    scores = {
        name: dpdm.evaluate_utility(*source, test.images, test.labels, num_classes=10, protocol=QUICK, classifiers=cnn)[
            "cnn"
        ]
        for name, source in {"synthetic": (images, labels), "real": (train.images, train.labels)}.items()
    }
    picture = folder / "real_and_synthetic.png"
    rows = [one_row_per_class(*source, num_classes=10) for source in ((train.images, train.labels), (images, labels))]
    side_by_side(picture, *rows)

    print(f"""
What was achieved, in {time.monotonic() - started:.0f} s:
  the claim       {release.statement}
                  Seeing the generator changes anyone's odds that a given digit was in the data by at most e^ε,
                  except with probability about δ. README.md says what that covers.
  its use         A classifier trained only on synthetic digits recognises {100 * scores["synthetic"].accuracy:.1f} %
                  of real ones; trained on real digits it recognises {100 * scores["real"].accuracy:.1f} %.
  the picture     {picture} (real left, so not for publication if they were private; synthetic right)
  to publish      {folder / "release"}
""")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/demo"))
