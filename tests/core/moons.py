"""What a user writes: a small network on two moons, Algorithm 1, and whether it will help, before and after."""

from functools import partial

import torch

import sims_core as sc


class Network(torch.nn.Module):
    """A denoiser of points, too small to be exact."""

    def __init__(self, width=16):
        super().__init__()
        layers = torch.nn.Linear(3, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))

    def forward(self, x, noise):
        return self.net(torch.cat([x, noise.expand(len(x))[:, None]], 1))


def moons(n, seed):
    """(n, 2), of about unit variance."""
    generator = seed.torch()
    t, upper = torch.pi * torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
    x, y = torch.where(upper, t.cos(), 1 - t.cos()), torch.where(upper, t.sin(), 0.5 - t.sin())
    noise = 0.1 * torch.randn(n, 2, generator=generator)
    return (torch.stack([x, y], 1) + noise - torch.tensor([0.5, 0.25])) / 0.7


view = partial(sc.denoiser.from_edm, sigma_data=1.0)


def loss(network, clean):
    sigma = sc.LogNormal().sample((len(clean), 1))
    weight = sc.EDM(sigma_data=1.0).weight(sigma)
    return sc.denoising_loss(view(network), clean, sigma, torch.randn_like(clean), weight).mean()


learner = sc.TorchLearner(
    Network, loss=loss, view=view, sampler=sc.Sampler.parse("heun:18"), shape=(2,), budget=200_000,
    optimiser=partial(torch.optim.Adam, lr=3e-3), finetuning=partial(torch.optim.Adam, lr=1e-3),
)  # fmt: skip


def improve(omega=1.0, number=0, n=6000):
    """Algorithm 1; what its samples promise beforehand, and the angle of the improved ones afterwards."""
    seed = sc.Seed(number)
    made = sc.sims(learner, moons(20_000, seed), n_synthetic=20_000, budget=100_000, omega=omega, seed=seed)
    real = moons(n, seed.child("real"))
    base, auxiliary, improved = (
        learner.sample(model, n, seed=seed.child("samples")) for model in (made.base, made.auxiliary, made.model)
    )
    return made, real, sc.outlook(real, base, auxiliary), sc.outlook(real, improved, auxiliary)


if __name__ == "__main__":
    *_, before, after = improve()
    left = before.distributions.left(1.0)
    found = (after.distributions.error / before.distributions.error) ** 2
    print(before, f"\nleft of the squared error at omega = 1: {left:.2f} expected, {found:.2f} found")
