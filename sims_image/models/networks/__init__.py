"""The networks of EDM and EDM2, built from their published arguments under their published state-dict names.

- `layers`: linear maps, convolutions that resample, group normalisation, attention, embeddings.
- `edm`: SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM). `preconditioning`: EDM's, VP's, VE's, iDDPM's, a flow's.
- `imported`: networks of diffusers under their schedulers.
- `edm2`: the magnitude-preserving U-Net with its preconditioning and learned log-variance.

``build(**config)`` gives a module that is called as ``net(x, sigma, class_labels=None, augment_labels=None)``.
"""

from __future__ import annotations

from typing import Any

import torch

from sims_image.models.networks.arguments import resolve
from sims_image.models.networks.preconditioning import Flow, Preconditioned

__all__ = ["Flow", "Preconditioned", "build", "parameter_count"]


def build(**config: Any) -> Preconditioned:
    """The network that published arguments describe, freshly initialised from torch's global generator.

    config: ``img_resolution``, ``img_channels``, ``label_dim`` (0: unconditional), and the arguments of the network
    and its preconditioning, flat. Arguments with ``model_type`` ('SongUNet' or 'DhariwalUNet') mean an EDM network,
    others EDM2's; ``class_name`` says so explicitly: 'EDMPrecond', 'VPPrecond', 'VEPrecond', 'iDDPMPrecond',
    'Precond' for EDM2, 'FlowPrecond' and 'FlowPrecond2' for flows of the two, or 'Diffusers' with the settings of
    ``model`` and ``scheduler``. What is left out has its published default; the network's ``config`` is complete,
    JSON-able, and rebuilds it. Raises `InputError` for unknown or missing arguments, and values that make no network.
    """
    cls, arguments = resolve(config)
    network = cls(**{name: value for name, value in arguments.items() if name != "class_name"})
    network.config = arguments
    return network


def parameter_count(**config: Any) -> int:
    """How many parameters that network has, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(**config).parameters())
