from __future__ import annotations

import torch

from models import random


def test_numbers_depend_on_their_key_alone() -> None:
    keys = random.fold_in(random.key(3, "task"), torch.arange(100))
    together = random.normal(keys, 5)
    alone = random.normal(keys[41:42], 5)
    assert torch.equal(together[41], alone[0])


def test_the_stream_is_that_of_the_published_generator() -> None:
    # SplitMix64 from state 0 begins with these numbers (Vigna's reference implementation).
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    got = random.fold_in(torch.zeros((), dtype=torch.int64), torch.arange(3))
    assert [int(x) % 2**64 for x in got] == expected


def test_uniform_numbers_fill_the_open_interval_evenly() -> None:
    for dtype in (torch.float32, torch.float64):
        x = random.uniform(random.fold_in(random.key(1), torch.arange(1000)), 200, dtype)
        assert 0 < float(x.min()) < 1e-4
        assert 1 - 1e-4 < float(x.max()) < 1
        counts = torch.histc(x.double(), 20, 0, 1)
        # 200,000 draws in 20 bins: 10,000 each with a standard deviation of 97.5.
        assert float((counts - 10_000).abs().max()) < 5 * 97.5


def test_normal_numbers_have_the_moments_of_the_normal_distribution_and_no_correlation() -> None:
    x = random.normal(random.fold_in(random.key(2), torch.arange(1000)), 200, torch.float64)
    assert abs(float(x.mean())) < 5 / 447
    assert abs(float(x.var()) - 1) < 5 * (2 / 200_000) ** 0.5
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < 5 / 446
    assert abs(float((x[1:] * x[:-1]).mean())) < 5 / 446


def test_different_words_and_numbers_give_different_keys() -> None:
    keys = {int(random.key(seed, word, i)) for seed in range(3) for word in ("a", "b") for i in range(3)}
    assert len(keys) == 18


def test_a_permutation_holds_every_index_once() -> None:
    order = random.permutation(random.key(5), 50)
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
