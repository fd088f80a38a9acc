"""Your own network and your own loop, private: DP-SGD with noise multiplicity on any nn.Module."""

import torch
from torch import nn

import dpdm
from dpdm.privacy import LayerWise

COPIES = 8  # noisy copies of an image in one step; its gradient is clipped once, after averaging over them


def loss(network: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """One number for each image, averaged over its copies: predict the noise in each."""
    x, noise = batch
    noisy = x[:, None] + noise
    return (network(noisy.flatten(0, 1)).view_as(noise) - noise).square().mean(dim=(1, 2))


def main(steps: int = 100) -> float:
    """Train on the digits at ε = 2 and return the last mean loss, which is the data owner's alone."""
    images = torch.from_numpy(dpdm.open_dataset("digits").images).flatten(1) / 127.5 - 1
    network = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.LayerNorm(256), nn.Linear(256, 64))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    plan = dpdm.DPSGD(dataset_size=1438, expected_batch_size=128, steps=steps, delta=1e-4).calibrate(epsilon=2.0)
    run = plan.start(strategy=LayerWise())

    def load(indices, random_bytes):  # noqa: ANN001, ANN202
        keys = [int.from_bytes(random_bytes(7), "little") for _ in indices]  # each image's own, whoever is beside it
        draws = [torch.randn(COPIES, 64, generator=torch.Generator().manual_seed(key)) for key in keys]
        return images[indices], torch.stack(draws) if draws else torch.zeros(0, COPIES, 64)

    while not run.finished:
        seen = run.backward(loss, network, num_records=len(images), load=load)
        optimizer.step()
    print(plan.statement)
    return seen.losses.reveal(because="an example, on public digits").mean().item()


if __name__ == "__main__":
    print(f"mean loss of the last batch: {main():.3f}")
