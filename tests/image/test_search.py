"""Successive halving: which candidates live, what it costs, which seeds it sees; samplers to retune over."""

from __future__ import annotations

import numpy as np
import pytest

from sims_core.sampling import Sampler
from sims_image.experiments import halving
from sims_image.experiments.options import Sims
from sims_image.experiments.plan import AUTO, plan
from sims_image.sampling.seeds import Seeds
from tests.image import tiny


def run(true, candidates, seeds, noise, rng):
    """Halve on values that are ``true`` plus noise of standard deviation noise / sqrt(n); (rounds, best, calls)."""
    calls = []

    def measure(keys, part):
        calls.extend((key, len(part)) for key in keys)
        return [{"value": true[key] + noise * rng.normal() / np.sqrt(len(part))} for key in keys]

    turns = halving.rounds(len(candidates), seeds)
    return *halving.halve(candidates, turns, measure, lambda cell: cell["value"]), calls


def test_rounds_are_prefixes_of_the_search_seeds():
    seeds = Seeds.span(500, 1800)
    found = halving.rounds(24, seeds)
    assert [len(part) for part in found] == [200, 600, 1800] and found[-1] == seeds
    assert all(next(iter(part)) == 500 for part in found)
    assert [len(p) for p in halving.rounds(24, Seeds.span(0, 300))] == [100, 300]  # a third round would be of 33
    assert (
        [len(p) for p in halving.rounds(3, seeds)]
        == [1800]
        == [len(p) for p in halving.rounds(24, seeds, halving=False)]
    )


def test_halving_keeps_the_better_third_and_costs_what_is_planned():
    candidates = [(b, w) for b in (1, 2) for w in range(12)]
    rng = np.random.default_rng(0)
    true = {key: float(value) for key, value in zip(candidates, rng.permutation(24), strict=True)}
    found, best, calls = run(true, candidates, Seeds.span(0, 900), 0.0, rng)
    assert best == min(true, key=lambda key: true[key])
    ranked = sorted(candidates, key=lambda key: true[key])
    assert [set(turn.cells) for turn in found] == [set(ranked[:24]), set(ranked[:8]), set(ranked[:3])]
    assert [halving.survivors(24, k) for k in range(3)] == [24, 8, 3]
    images = sum(n for _, n in calls)
    assert halving.planned(24, halving.rounds(24, Seeds.span(0, 900)), 5, 2) == (
        5 * images + 2 * 1300,
        900 * (24 * 5 + 2),
    )
    assert images == 24 * 100 + 8 * 300 + 3 * 900 < 0.4 * 24 * 900


def test_halving_under_noise_loses_little():
    """A parabola in omega with noise as large as its rise over a step: what is chosen is near the best."""
    omegas, rng = np.arange(1, 13) / 4, np.random.default_rng(1)
    true = {w: (w - 1.5) ** 2 for w in omegas}
    chosen = [run(true, list(omegas), Seeds.span(0, 900), 2.0, rng)[1] for _ in range(200)]
    assert np.mean([true[w] for w in chosen]) < 0.1 < np.mean(list(true.values())) / 5


@pytest.mark.parametrize("text", ["heun:5", "euler:9", "ddim:10", "rk4:3"])
def test_retuned_samplers_cost_no_more(text):
    base = Sampler.parse(text)
    for nfe in (9, 12, 18):
        found = halving.retunings(base, nfe)
        assert all(nfe / 2 < sampler.nfe <= nfe for sampler in found) and len(set(found)) == len(found)
        assert found[0].name == base.name and found[0].sigma_max == base.sigma_max
        assert {(s.rho, s.sigma_max) for s in found} >= {(3.0, 20.0), (10.0, 80.0)}
    assert halving.at_most(Sampler("heun", 5), 18) == Sampler("heun", 9)


def test_auto_reads_its_grid(tmp_path, monkeypatch):
    from sims_image.models.presets import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", tiny.preset())
    given = Sims(data=str(tmp_path), base="tiny", omega="auto", budget="1k,2k", search="1800", n="900")
    found = plan(given)
    assert found.halving and AUTO == "0:3:0.25" and found.omegas == tuple(k / 4 for k in range(13))
    assert len(found.candidates) == 24 and [len(part) for part in found.rounds] == [200, 600, 1800]
    parts = [found.synthetic, found.search, *found.confirm]
    assert all(a.overlap(b) is None for i, a in enumerate(parts) for b in parts[:i])
    assert all(part.overlap(found.search) is not None for part in found.rounds)
    from dataclasses import replace

    grid = plan(replace(given, omega="0:3:0.25"))
    assert not grid.halving and grid.omegas == found.omegas and grid.rounds == (grid.search,)
    assert grid.confirm == found.confirm  # so that cells are shared
