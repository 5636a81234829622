"""Published settings of the experiments, a line each; `--preset NAME` of a verb takes them, `--dry-run` prices them.

What the sources do not say is our choice, and marked [U]. `data/...` are folders that `prepare` makes.
"""

from __future__ import annotations

from typing import Any

from sims_image.experiments.options import Control, Experiment, Loop, Pollution, Retrain, Sims

#: verb -> name -> options
_RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "sims": {
        # the paper's bases and figures of merit (FID 1.33, 1.04, 0.92); n_s and learning rate are Neon's, B and the
        # grid of omega ours [U]
        "cifar10": {
            **{"base": "cifar10-uncond", "data": "data/cifar10", "features": "inception", "n": "50k", "search": "10k"},
            **{"synthetic": "6k", "budget": "1,3,6Mi", "lr": 1e-4},
        },
        "ffhq64": {
            **{"base": "ffhq64", "data": "data/ffhq64", "features": "inception", "n": "50k", "search": "10k"},
            **{"synthetic": "18k", "budget": "1,3,6Mi", "lr": 4e-6},
        },
        "imagenet64": {
            **{"base": "imagenet64-edm2-s", "data": "data/imagenet64", "features": "inception", "n": "50k"},
            **{"search": "10k", "synthetic": "50k", "budget": "1,2,4Mi", "labels": "uniform"},
        },
    },
    "loop": {
        # SIMS (arXiv 2408.16333) shows loops on Gaussians only; sizes and omega on images are ours [U]
        "cifar10": {
            **{"base": "cifar10-uncond", "data": "data/cifar10", "images": 50_000, "features": "inception", "n": "50k"},
            **{"loop": "augmentation", "method": "standard,sims,neon", "generations": 10, "trials": 1},
            **{"synthetic": "50k", "auxiliary_size": "6k", "budget": "6Mi", "omega": "1"},
        },
        "ffhq64": {
            **{"base": "ffhq64", "data": "data/ffhq64", "images": 70_000, "features": "inception", "n": "50k"},
            **{"loop": "augmentation", "method": "standard,sims,neon", "generations": 10, "trials": 1},
            **{"synthetic": "70k", "auxiliary_size": "18k", "budget": "6Mi", "lr": 4e-6, "omega": "1"},
        },
        "imagenet64": {
            **{"base": "imagenet64-edm2-s", "data": "data/imagenet64", "images": 1_281_167, "features": "inception"},
            **{"loop": "augmentation", "method": "standard,sims", "generations": 5, "trials": 1, "n": "50k"},
            **{"synthetic": "1281167", "auxiliary_size": "50k", "budget": "4Mi", "omega": "1"},
        },
    },
    "pollution": {
        # Figure 5: |D_p| up to a few times where SIMS-P improves (30k of 50k, 15k of 70k); n_s, B, omega are ours [U]
        "cifar10": {
            **{"base": "cifar10-uncond", "data": "data/cifar10", "images": 50_000, "features": "inception", "n": "50k"},
            **{"pollution": "0,0.1,0.2,0.4,0.6,1", "omega": "1", "trials": 1, "auxiliary_size": "6k", "budget": "6Mi"},
        },
        "ffhq64": {
            **{"base": "ffhq64", "data": "data/ffhq64", "images": 70_000, "features": "inception", "n": "50k"},
            **{"pollution": "0,0.07,0.15,0.3,0.6,1", "omega": "1", "trials": 1},
            **{"auxiliary_size": "18k", "budget": "6Mi", "lr": 4e-6},
        },
    },
    "retrain": {
        # Bertrand et al.: EDM (ddpmpp), 0.05 Mi a retraining at batch 256; the grid of ratios and rounds are ours [U]
        "cifar10": {
            **{"base": "cifar10-uncond", "data": "data/cifar10", "images": 50_000, "features": "inception", "n": "50k"},
            **{"ratio": "0,0.5,1", "generations": 20, "retrain_budget": "0.05Mi", "retrain_batch": 256, "trials": 1},
        },
        "ffhq64": {
            **{"base": "ffhq64", "data": "data/ffhq64", "images": 70_000, "features": "inception", "n": "50k"},
            **{"ratio": "0,0.5,1", "generations": 20, "retrain_budget": "0.05Mi", "retrain_batch": 256, "trials": 1},
        },
    },
    "control": {
        # the paper's case, in words: gender balance on FFHQ-64 with an attribute classifier; the rest is ours [U]
        "ffhq64": {
            **{"base": "ffhq64", "data": "data/ffhq64", "images": 70_000, "features": "inception", "n": "50k"},
            **{"classifier": "data/ffhq64-gender", "target": "0.5,0.5", "omega": "0.5:2:0.5", "trials": 3},
            **{"auxiliary_size": "18k", "budget": "6Mi", "lr": 4e-6},
        },
    },
}


#: verb -> class of its settings
_OPTIONS: dict[str, type[Experiment]] = {
    "sims": Sims,
    "loop": Loop,
    "pollution": Pollution,
    "retrain": Retrain,
    "control": Control,
}


def recipes(verb: str) -> dict[str, Any]:
    """The published settings of a verb, by name, as its settings."""
    return {preset: _OPTIONS[verb](preset=preset, **options) for preset, options in _RECIPES[verb].items()}
