"""Second-order MAML on 2D navigation as a bare torch loop: what the service's training is measured against.

The same work as one iteration of the service: 20 tasks, 20 episodes of 100 steps before adapting and as many after, a
policy of 2 x 100 tanh units, one inner step, an Adam outer step. No environment interface, no episode ends, no
database, no checkpoints; the baseline is the mean return-to-go of each step.

Run:    python benchmarks/navigation_loop.py ITERATIONS
Prints: environment steps per second, over the median iteration.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor

N, B, T, H = 20, 20, 100, 100
ALPHA, SPEED, GAMMA = 0.1, 0.1, 0.99


def mean(p: list[Tensor], x: Tensor) -> Tensor:
    """Mean action [N, M, 2] of N policies."""
    x = torch.tanh(torch.baddbmm(p[1], x, p[0]))
    x = torch.tanh(torch.baddbmm(p[3], x, p[2]))
    return torch.baddbmm(p[5], x, p[4])


@torch.no_grad()
def episodes(p: list[Tensor], goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Observations and actions [N, T*B, 2] and standardised advantages [N, T*B]."""
    std = p[6].exp()
    position = torch.zeros(N, B, 2)
    observations, actions, rewards = [], [], []
    for noise in torch.randn(T, N, B, 2):
        action = torch.addcmul(mean(p, position), noise, std)
        observations.append(position)
        actions.append(action)
        position = position + action.clamp(-SPEED, SPEED)
        rewards.append((position - goal).norm(dim=-1).neg_())
    for t in range(T - 2, -1, -1):
        rewards[t] = torch.add(rewards[t], rewards[t + 1], alpha=GAMMA)
    to_go = torch.stack(rewards, 1)
    to_go -= to_go.mean(2, keepdim=True)
    to_go /= to_go.std((1, 2), keepdim=True) + 1e-8
    return torch.stack(observations, 1).flatten(1, 2), torch.stack(actions, 1).flatten(1, 2), to_go.flatten(1)


def loss(p: list[Tensor], batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Likelihood-ratio surrogate of each task, [N]."""
    x, action, advantage = batch
    z = (action - mean(p, x)) * torch.exp(-p[6])
    log_prob = -0.5 * (z * z).sum(-1) - p[6].sum(-1)
    return -(torch.exp(log_prob - log_prob.detach()) * advantage).mean(1)


def main(iterations: int) -> None:
    """Train and print the speed."""
    torch.manual_seed(0)
    sizes = [(2, H), (1, H), (H, H), (1, H), (H, 2), (1, 2), (1, 2)]
    theta = [torch.nn.init.xavier_uniform_(torch.empty(s)) if s[0] > 1 else torch.zeros(s) for s in sizes]
    theta = [p.requires_grad_() for p in theta]
    adam = torch.optim.Adam(theta, 1e-3)
    seconds = []
    for _ in range(iterations + 3):
        start = time.perf_counter()
        goal = torch.rand(N, 1, 2) - 0.5
        stacked = [p.expand(N, *p.shape) for p in theta]
        gradient = torch.autograd.grad(loss(stacked, episodes(stacked, goal)).sum(), stacked, create_graph=True)
        adapted = [p - ALPHA * g for p, g in zip(stacked, gradient, strict=True)]
        query = episodes([p.detach() for p in adapted], goal)
        adam.zero_grad()
        loss(adapted, query).mean().backward()
        adam.step()
        seconds.append(time.perf_counter() - start)
    print(2 * N * B * T / statistics.median(seconds[3:]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
