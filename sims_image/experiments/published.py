"""Published settings of models and experiments as one table: `sims_image recipes` lists it with what each costs.

`--preset NAME` of a verb takes a line's options, `--dry-run` prices them. `data/...` are folders that `prepare` makes.
How far a line can be trusted: P, read in the paper, its authors' pages or their code; S, a secondary source; U, our
choice, since no source says. What is less certain than its line's best part is marked in the line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from sims_core.errors import choose
from sims_image.experiments.options import Control, Experiment, Loop, Pollution, Retrain, Sims
from sims_image.metrics.options import Evaluate


@dataclass(frozen=True)
class Recipe:
    """A line. trust: P, S or U. fid: as published. options: of the verb."""

    verb: str
    name: str
    trust: str
    fid: str
    source: str
    options: dict[str, Any]

    @property
    def settings(self) -> Any:
        """As the verb takes them."""
        return _OPTIONS[self.verb](preset=self.name, **self.options)

    @property
    def hours(self) -> float:
        """Hours of one A100, by `priced`."""
        return _HOURS[self.verb][self.name]

    def priced(self) -> float:
        """Hours of one A100 (`sims_image.models.cost`). Data and checkpoints need not be there; networks are traced."""
        module = import_module(_PRICED.get(self.verb, f"sims_image.experiments.{self.verb}"))
        return float(module.priced(replace(self.settings, dry_run=True)).hours)


# fmt: off
_FID: dict[str, Any] = {"features": "inception"}
_SIMS: dict[str, Any] = {**_FID, "n": "50k", "search": "10k"}
_LOOP: dict[str, Any] = {"loop": "augmentation", "trials": 1, "omega": "1"}
_CIFAR: dict[str, Any] = {"base": "cifar10-uncond", "data": "data/cifar10"}
_FFHQ: dict[str, Any] = {"base": "ffhq64", "data": "data/ffhq64"}
_64: dict[str, Any] = {"base": "imagenet64-edm2-s", "data": "data/imagenet64"}
_512: dict[str, Any] = {**_SIMS, "base": "imagenet512-edm2-s", "data": "data/imagenet512", "labels": "uniform",
                        "synthetic": "1500k", "budget": "1,2,4Mi"}
_CIFAR_LAB, _FFHQ_LAB, _64_LAB = (
    {**data, **_FID, "images": count, "n": "50k"}
    for data, count in ((_CIFAR, 50_000), (_FFHQ, 70_000), (_64, 1_281_167))
)
_FROM = {
    "sims": "SIMS (arXiv 2408.16333)", "neon": "Neon (arXiv 2510.03597)", "edm": "EDM (arXiv 2206.00364)",
    "edm2": "EDM2 (arXiv 2312.02696)", "autoguidance": "autoguidance (arXiv 2406.02507)", "ddo": "DDO",
}
#: published checkpoints: name, FID, file, preset of its network, data, labels, and what is asked for besides
_CHECKPOINTS: tuple[tuple[str, str, str, str, str, str, dict[str, Any]], ...] = (
    ("edm-cifar10-cond", "1.79", "edm-cifar10-32x32-cond-vp.pkl", "cifar10-cond", "cifar10", "uniform", {}),
    ("edm-cifar10-uncond", "1.97", "edm-cifar10-32x32-uncond-vp.pkl", "cifar10-uncond", "cifar10", "", {}),
    ("edm-ffhq64", "2.39", "edm-ffhq-64x64-uncond-vp.pkl", "ffhq64", "ffhq64", "", {}),
    ("edm2-imagenet64", "1.58", "edm2-img64-s-1073741-0.075.pkl", "imagenet64-edm2-s", "imagenet64", "uniform", {}),
    ("edm2-imagenet512", "2.56", "edm2-img512-s-2147483-0.130.pkl", "imagenet512-edm2-s", "imagenet512", "uniform", {}),
    ("neon-cifar10-cond", "1.38", "Neon_EDM_conditional_CIFAR10.pkl", "cifar10-cond", "cifar10", "uniform", {}),
    ("neon-cifar10-uncond", "1.38", "Neon_EDM_unconditional_CIFAR10.pkl", "cifar10-uncond", "cifar10", "", {}),
    ("neon-ffhq64", "1.12", "Neon_EDM_FFHQ.pkl", "ffhq64", "ffhq64", "", {}),
    ("ddo-cifar10-cond", "1.30", "edm-cifar10-cond-vp-ddo.pkl", "cifar10-cond", "cifar10", "balanced", {}),
    ("ddo-cifar10-uncond", "1.38", "edm-cifar10-uncond-vp-ddo.pkl", "cifar10-uncond", "cifar10", "", {}),
    ("ddo-imagenet64", "0.97", "edm2-img64-s-ddo.pkl", "imagenet64-edm2-s", "imagenet64", "balanced", {}),
    ("ddo-imagenet512", "1.26", "edm2-img512-l-ddo.pkl", "imagenet512-edm2-l", "imagenet512", "balanced", {}),
    ("autoguidance-imagenet64", "1.01", "edm2-img64-s-1073741-0.045.pkl by edm2-img64-xs-0134217-0.110.pkl",
     "imagenet64-edm2-s", "imagenet64", "uniform", {"guide": "imagenet64-edm2-xs", "weight": 1.7}),
    ("autoguidance-imagenet512", "1.34", "edm2-img512-s-2147483-0.070.pkl by edm2-img512-xs-0134217-0.125.pkl",
     "imagenet512-edm2-s", "imagenet512", "uniform", {"guide": "imagenet512-edm2-xs", "weight": 2.1}),
)

RECIPES: tuple[Recipe, ...] = (
    Recipe("sims", "cifar10", "S", "1.97 -> 1.33", f"{_FROM['sims']}: n_s and B to 20 % of the training by notes on "
           "Neon, rate the base's own [S]; grids ours [U]",
           {**_CIFAR, **_SIMS, "synthetic": "100k", "budget": "1,6,20,40Mi"}),
    Recipe("sims", "cifar10-neon", "P", "1.97 -> 1.38", f"{_FROM['neon']}: n_s, rate, w to 3, B to its script's 6 Mi",
           {**_CIFAR, **_SIMS, "synthetic": "6k", "budget": "1,3,6Mi", "lr": 1e-4, "omega": "0:3:0.25"}),
    Recipe("sims", "ffhq64", "U", "2.39 -> 1.04", f"{_FROM['sims']}; n_s, B as on CIFAR-10, rate the base's own [U]",
           {**_FFHQ, **_SIMS, "synthetic": "100k", "budget": "1,6,20,40Mi"}),
    Recipe("sims", "ffhq64-neon", "P", "2.39 -> 1.12", f"{_FROM['neon']}: n_s, rate, B of 1.5 and 3 Mi, w to 2",
           {**_FFHQ, **_SIMS, "synthetic": "18k", "budget": "1.5,3Mi", "lr": 4e-6, "omega": "0:2:0.25"}),
    Recipe("sims", "imagenet64", "U", "1.58 -> 0.92", f"{_FROM['sims']}; n_s, B and omega ours [U]",
           {**_64, **_SIMS, "synthetic": "50k", "budget": "1,2,4Mi", "labels": "uniform"}),
    Recipe("sims", "imagenet512", "U", "2.56 -> 1.73", f"{_FROM['sims']}: n_s 1.5M, of its naive fine-tune (FID 6.07) "
           "[P]; B and omega ours; NFE 63 read as one network's, 126 in all [U]", _512),
    Recipe("sims", "imagenet512-nfe63", "U", "2.56 -> 1.73", "the same; NFE 63 read as both networks' together [U]",
           {**_512, "sampler": "heun:16"}),
    Recipe("sims", "imagenet512-interval", "U", "2.56 -> 1.73", "the same; guided at sigma .28 to 2.9 alone, as arXiv "
           "2404.07724 does by classes [U]", {**_512, "guidance": "interval:0.28:2.9"}),
    *(
        Recipe("evaluate", name, "P", fid, f"{_FROM[name.partition('-')[0]]}: {file}",
               {**_FID, "base": preset, "reference": f"data/{data}", "seeds": "0-49999", "labels": labels, **more})
        for name, fid, file, preset, data, labels, more in _CHECKPOINTS
    ),
    # loops: SIMS shows them on Gaussians only
    Recipe("loop", "cifar10", "U", "", f"{_FROM['sims']}; on images ours, n_s, rate and B of auxiliaries Neon's [U]",
           {**_CIFAR_LAB, **_LOOP, "method": "standard,sims,neon", "generations": 10, "synthetic": "50k",
            "auxiliary_size": "6k", "budget": "6Mi"}),
    Recipe("loop", "ffhq64", "U", "", f"{_FROM['sims']}; on images ours, n_s, rate and B of auxiliaries Neon's [U]",
           {**_FFHQ_LAB, **_LOOP, "method": "standard,sims,neon", "generations": 10, "synthetic": "70k",
            "auxiliary_size": "18k", "budget": "6Mi", "lr": 4e-6}),
    Recipe("loop", "imagenet64", "U", "", f"{_FROM['sims']}; on images ours [U]",
           {**_64_LAB, **_LOOP, "method": "standard,sims", "generations": 5, "synthetic": "1281167",
            "auxiliary_size": "50k", "budget": "4Mi"}),
    # pollution: two generations, the second trained on D_r and on samples D_p of the first, which saw D_r alone
    Recipe("pollution", "cifar10", "U", "", f"{_FROM['sims']}, Figure 5: self-improved below |D_p| = 30k, .60 |D_r| "
           "[S]; n_s, B and omega ours [U]", {**_CIFAR_LAB, "pollution": "0,0.1,0.2,0.4,0.6,1", "omega": "1",
           "trials": 1, "auxiliary_size": "6k", "budget": "6Mi"}),
    Recipe("pollution", "ffhq64", "U", "", f"{_FROM['sims']}, Figure 5: self-improved below |D_p| = 15k, .20 |D_r| [S];"
           " n_s, B and omega ours [U]", {**_FFHQ_LAB, "pollution": "0,0.1,0.2,0.3,0.6,1", "omega": "1", "trials": 1,
           "auxiliary_size": "18k", "budget": "6Mi", "lr": 4e-6}),
    *(
        Recipe("retrain", name, "P", "", "Bertrand et al. (arXiv 2310.00429): their code's 5 retrainings of .05 Mi at "
               "batch 256; ratios ours [U]", {**data, "ratio": "0,0.5,1", "generations": 6,
               "retrain_budget": "0.05Mi", "retrain_batch": 256, "trials": 1})
        for name, data in (("cifar10", _CIFAR_LAB), ("ffhq64", _FFHQ_LAB))
    ),
    *(
        Recipe("retrain", name, "P", fid, f"Bertrand et al. (arXiv 2310.00429), {told}; ratios ours [U]",
               {**_CIFAR_LAB, "base": base, "ratio": "0,0.5,1", "generations": 6, "retrain_budget": budget,
                "retrain_batch": batch, "retrain_lr": lr, "start": "ema", "adam": adam, "sample_seeds": "same",
                "trials": 1})
        for name, fid, told, base, budget, batch, lr, adam in (
            ("bertrand-code", "1.97", "their code: 5 of .05 Mi", "cifar10-uncond", "0.05Mi", 256, None, "new"),
            ("bertrand-1Mi", "1.97", "1 Mi per retraining", "cifar10-uncond", "1Mi", 256, None, "new"),
            ("bertrand-code-ot-cfm", "3.5", "their code: 5 of 390 steps", "cifar10-ot-cfm", "49920", 128, 2e-4, "kept"),
            ("bertrand-1Mi-ot-cfm", "3.5", "7,812 steps per retraining", "cifar10-ot-cfm", "999936", 128, 2e-4, "kept"),
        )
    ),
    Recipe("control", "ffhq64", "U", "", f"{_FROM['sims']}: gender balance, in words; the rest ours [U]",
           {**_FFHQ_LAB, "classifier": "data/ffhq64-gender", "target": "0.5,0.5", "omega": "0.5:2:0.5", "trials": 3,
            "auxiliary_size": "18k", "budget": "6Mi", "lr": 4e-6}),
)

#: What `Recipe.priced` finds, to a tenth of an hour, by verb and name. Tracing all networks takes longer than anybody
#: waits for a list; a test compares.
_HOURS = {
    "sims": {
        "cifar10": 736.0, "cifar10-neon": 576.7, "ffhq64": 1644.8, "ffhq64-neon": 1251.4, "imagenet64": 2062.7,
        "imagenet512": 3847.3, "imagenet512-nfe63": 3364.9, "imagenet512-interval": 3678.3,
    },
    "evaluate": {
        "edm-cifar10-cond": 1.4, "edm-cifar10-uncond": 1.4, "edm-ffhq64": 6.1, "edm2-imagenet64": 11.8,
        "edm2-imagenet512": 11.8, "neon-cifar10-cond": 1.4, "neon-cifar10-uncond": 1.4, "neon-ffhq64": 6.1,
        "ddo-cifar10-cond": 1.4, "ddo-cifar10-uncond": 1.4, "ddo-imagenet64": 11.8, "ddo-imagenet512": 32.6,
        "autoguidance-imagenet64": 17.0, "autoguidance-imagenet512": 17.0,
    },
    "loop": {"cifar10": 13574.5, "ffhq64": 27200.0, "imagenet64": 16866.8},
    "pollution": {"cifar10": 3407.9, "ffhq64": 6810.5},
    "retrain": {
        "cifar10": 507.7, "ffhq64": 1108.2, "bertrand-code": 507.7, "bertrand-1Mi": 541.2,
        "bertrand-code-ot-cfm": 72.2, "bertrand-1Mi-ot-cfm": 83.4,
    },
    "control": {"ffhq64": 3498.8},
}
# fmt: on

_OPTIONS: dict[str, type[Experiment] | type[Evaluate]] = {
    "sims": Sims,
    "evaluate": Evaluate,
    "loop": Loop,
    "pollution": Pollution,
    "retrain": Retrain,
    "control": Control,
}
#: verb -> the module whose `priced` says what it costs, where it is not of the verb's name
_PRICED = {"evaluate": "sims_image.metrics.evaluate", "retrain": "sims_image.experiments.loop"}
_LEGEND = (
    "FID: as published, before -> after. A100-hours: drawing and training, the base's too (unless --base names a",
    "checkpoint), of counted operations at an assumed rate, without features and autoencoders. From: P read in the",
    "paper, its authors' pages or their code; S by a secondary source; U our choice, since no source says.",
)


def recipes(verb: str) -> dict[str, Any]:
    """The published settings of a verb, by name, as its settings."""
    return {one.name: one.settings for one in RECIPES if one.verb == verb}


def listed(verb: str = "") -> list[str]:
    """The table as lines, of one verb or of all. Raises `InputError` for a verb without published settings."""
    if verb:
        choose("verb", verb, _OPTIONS)
    chosen = [one for one in RECIPES if verb in ("", one.verb)]
    rows = [("verb", "FID", "A100-hours", "from")]
    rows += [
        (f"{one.verb} --preset {one.name}", one.fid, f"{one.hours:10,.1f}", f"{one.trust}  {one.source}")
        for one in chosen
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    return [*lines, "", *_LEGEND]
