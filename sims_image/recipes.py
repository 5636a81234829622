"""Published settings of the experiments, a line each; `--preset NAME` of a verb takes them, `--dry-run` prices them.

What the sources do not say is our choice, and marked [U]. `data/...` are folders that `prepare` makes.
"""

from __future__ import annotations

from typing import Any

#: verb -> name -> options
_RECIPES: dict[str, dict[str, dict[str, Any]]] = {
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
            **{"synthetic": "1281167", "auxiliary_size": "50k", "budget": "6Mi", "omega": "1"},
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


def recipes(verb: str) -> dict[str, Any]:
    """The published settings of a verb, by name, as its settings."""
    from importlib import import_module

    where = {
        "loop": "Loop",
        "pollution": "Pollution",
        "retrain": "Retrain",
        "control": "Control",
    }
    module = import_module(f"sims_image.{verb}")
    cls = getattr(module, where[verb])
    return {name: cls(preset=name, **options) for name, options in _RECIPES.get(verb, {}).items()}
