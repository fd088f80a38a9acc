"""Settings that make a run on the photos of conftest.py last a second."""

SMALL = (
    "--set=data.size=8",
    "--set=privacy.epsilon=1",
    "--set=network.kind=mlp",
    "--set=network.width=16",
    "--set=network.blocks=1",
    "--set=privacy.steps=6",
    "--set=privacy.expected_batch_size=8",
    "--set=privacy.delta=1e-3",
    "--set=loss.noise_multiplicity=2",
    "--set=sampler.steps=3",
)
