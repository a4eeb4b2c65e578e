"""A generator and a discriminator of images with two optimizers, trained in turns."""

import torch
from torch import nn


def up(a: int, b: int, *more: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(a, b, 4, *more, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]


def down(a: int, b: int) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, inplace=True)]


painter = nn.Sequential(
    *up(100, 512, 1, 0),
    *up(512, 256, 2, 1),
    *up(256, 128, 2, 1),
    *up(128, 64, 2, 1),
    nn.ConvTranspose2d(64, 3, 4, 2, 1),
    nn.Tanh(),
).cuda()
critic = nn.Sequential(
    nn.Conv2d(3, 64, 4, 2, 1),
    nn.LeakyReLU(0.2, inplace=True),
    *down(64, 128),
    *down(128, 256),
    *down(256, 512),
    nn.Conv2d(512, 1, 4),
    nn.Sigmoid(),
    nn.Flatten(0),
).cuda()
first, second = (torch.optim.Adam(one.parameters(), lr=2e-4, betas=(0.5, 0.999)) for one in (critic, painter))
loss = nn.BCELoss()
for _ in range(10):
    images = torch.rand(256, 3, 64, 64, device="cuda")
    ones, zeros = torch.ones(256, device="cuda"), torch.zeros(256, device="cuda")
    critic.zero_grad()
    loss(critic(images), ones).backward()
    fakes = painter(torch.randn(256, 100, 1, 1, device="cuda"))
    loss(critic(fakes.detach()), zeros).backward()
    first.step()
    painter.zero_grad()
    loss(critic(fakes), ones).backward()
    second.step()
