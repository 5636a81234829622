"""What a sweep's figures say of themselves: their settings, which of them are our reading, and what is drawn."""

from __future__ import annotations

from typing import Any

from sims_toy import phase
from sims_toy.flows.settings import flow_words
from sims_toy.grid.parse import law_text
from sims_toy.networks.settings import unusual

#: Of the phase diagram.
PHASES = (
    "Black lines: linear response, root mean square. White: levels of d_T / d_1(0), which decides 'strong'; "
    "'prevention' also compares d_T(omega) with d_1(omega), which too strong a guidance itself raises. Lines end where "
    "the law has no such regime."
)
BANDS = "Bands: 95 % bootstrap intervals."


def marks(settings: dict[str, Any], method: str) -> str:
    """What the lines of figure4 are, for its caption."""
    below = "Thin dashes: linear response, root mean square."
    if settings["learner"] != "exact":
        below = ""
    if settings["learner"] == "network":
        below = "Thin lines: the exact learner (eta = 1)."
        if settings["overlay_trials"]:
            below += " Its runs on the networks' own data and noise serve as control variates of their means."
    control = ""
    if method == "sims":
        control = "Dotted across: standard training with twice the sampler's steps (equal cost)"
        control += f" or with {', '.join(settings['retuned'])} (retuned). " if settings.get("retuned") else ". "
    over = (
        "Over generations: omega = 0, about half the best, the best at convergence and the largest, in their regimes' "
        "colours; dots: d_1(omega)."
    )
    return f"{BANDS} {below} {control}{over}"


def caption(facet: dict[str, Any], settings: dict[str, Any], *, shown: str = "") -> str:
    """The settings of a facet, and which of them are our reading. shown: what a figure's lines and marks are."""
    aux = "|D_aux| = |D_s|" if not facet["aux"] else f"|D_aux| = {facet['aux']}"
    real = settings["real"]
    if real == "gaussian":
        real = "N(mean [{}], covariance [{}])".format(*law_text(settings))
    extras = "".join(
        f"{name} {facet[key]:g}, "
        for key, name, usual in (("temperature", "sampling bias", 1), ("pollution", "|D_p| =", 0))
        if facet.get(key, usual) != usual
    )
    distance = ""
    if settings["distance"] != "w2":
        name = {"emd": "exact", "sliced": "sliced"}[settings["distance"]]
        distance = f"Distance: {name} W2 between 1,000 generated and 1,000 real points. "
    budget, networks = f"eta = {facet['budget']}", ""
    if settings["learner"] != "exact":
        budget = f"auxiliary budget {facet['budget']} samples"
        networks = f" Flows: {flow_words(settings['flow'])}." if settings["learner"] == "flow" else ""
        networks = networks or f" Networks: {_networks(settings['network'])}."
    training = f"trained by {facet['estimator']}, " if facet.get("estimator", "mle") != "mle" else ""
    beside = f" ({settings['beside_trials']} of the other readings)" if settings.get("beside_trials") else ""
    last = reading = ""
    if settings["generations"] > 1:
        kept = len(range(settings["generations"])[phase.last_generations(settings["generations"])])
        named = {1: "the last d_t", phase.LAST: "the mean of the last ten"}
        last = f"; d_T is {named.get(kept, f'the mean of the last {kept}')}"
        reading = (
            "Regimes, |D_r|, the real Gaussian, the sampler, what the auxiliary is trained on and how long are our "
            "reading; the paper does not state them."
        )
    text = (
        f"{settings['learner']} learner, {facet['method']}, {facet['loop']} loop: real data {real}, "
        f"|D_r| = {facet['real_size']}, {extras}{training}sampler {facet['sampler']}, {budget}, {aux}, "
        f"{settings['trials']} paired trials{beside}, {_count(settings['generations'], 'generation')}, "
        f"seed {settings['seed']}{last}. {distance}{shown} {reading}{networks}"
    )
    return " ".join(text.split())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _networks(n: dict[str, Any]) -> str:
    """How the networks are built and trained: the main settings, and every other one that is not the usual one."""
    told = ("layers", "width", "activation", "parametrisation", "target", "steps", "batch", "start", "rate",
            "auxiliary_rate")  # fmt: skip
    return (
        f"{n['layers']} x {n['width']} {n['activation']}, {n['parametrisation']}, {n['target']} target, {n['steps']} "
        f"Adam steps of {n['batch'] or 'all'} rows from {n['start']}, rate {n['rate']:g}, "
        f"auxiliary {n['auxiliary_rate']:g}{unusual(n, told)}"
    )
