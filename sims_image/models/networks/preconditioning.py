"""From a U-Net to a denoiser: EDM's preconditioning, and those of the formulations that EDM compares itself with.

Every network of this package is called as ``net(x, sigma, class_labels=None, augment_labels=None)`` and returns
D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), float32 in and out (EDM, Karras et al. 2022, Eq. 7 and Table 1).
VP and VE are those of Song et al. (2021), iDDPM that of Nichol & Dhariwal (2021), for EDM's published baselines.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sims_core.diffusion import EDM
from sims_core.errors import InputError
from sims_core.flow import sigma_of, time_of
from sims_image.models.networks.edm import DhariwalUNet, SongUNet

MODELS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
BODIES = (torch.float32, torch.bfloat16, torch.float16)


class Preconditioned(nn.Module):
    """What all networks share: the call, its checks, and the precision of the body.

    config: the arguments that `sims_image.models.networks.build` rebuilds the network from. sigma_min, sigma_max: the
    noise levels it supports; discrete: of these a table alone (`round_sigma`). sigma_data: standard deviation of the
    data. has_logvar: it can tell its uncertainty (EDM2).
    """

    has_logvar: ClassVar[bool] = False
    discrete: bool = False
    config: dict[str, Any]
    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __init__(self, img_resolution: int, img_channels: int, label_dim: int, use_fp16: bool) -> None:
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16 = use_fp16
        self._compute_dtype: torch.dtype | None = None
        self.config = {}

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The type the body computes in; None: float16 on a GPU if ``use_fp16``, else float32.

        Weights, the skip path, input and output are float32 in any case. Raises `InputError` for other types.
        """
        return self._compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, value: torch.dtype | None) -> None:
        if value is not None and value not in BODIES:
            raise InputError("compute_dtype", value, "choose from torch.float32, torch.bfloat16, torch.float16, None")
        self._compute_dtype = value

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
        """(c_skip, c_out, c_in, c_noise) at noise levels (N, 1, 1, 1); None stands for 1."""
        raise NotImplementedError

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The U-Net itself, F(x, c_noise)."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows; all, unless it was trained on a table of them."""
        return torch.as_tensor(sigma)

    def logvar(self, c_noise: Tensor) -> Tensor:
        """The learned log-variance u(sigma) of the loss, (N, 1, 1, 1); see `has_logvar`."""
        raise InputError("return_logvar", True, "only EDM2 networks estimate their uncertainty")

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
        return_logvar: bool = False,
    ) -> Any:
        """Denoise x (N, C, H, W) at noise levels sigma: (N,), (N, 1, 1, 1) or one for all.

        class_labels: one-hot rows (N, label_dim), None for zeros; an unconditional network takes no notice of them.
        augment_labels: (N, augment_dim), None for images as they are. force_fp32: a float32 body for this call.
        Returns D(x, sigma), float32; with return_logvar (D, u(sigma)), u (N, 1, 1, 1). Raises `InputError` for shapes
        that do not fit, and for augmentation labels or log-variances of a network without them.
        """
        if x.ndim != 4 or x.shape[1] != self.img_channels:
            raise InputError("x", tuple(x.shape), f"images (N, {self.img_channels}, H, W)")
        x = x.to(torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        if len(sigma) not in (1, len(x)):
            raise InputError("sigma", tuple(sigma.shape), f"one noise level, or one for each of the {len(x)} images")
        labels = self._class_labels(class_labels, x)
        if augment_labels is not None:
            augment_labels = self._augment_labels(augment_labels, x)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        scaled = x if c_in is None else c_in * x
        inner = self.raw(scaled.to(self._body(x.device, force_fp32)), c_noise.flatten(), labels, augment_labels)
        denoised = (x if c_skip is None else c_skip * x) + c_out * inner.to(torch.float32)
        return (denoised, self.logvar(c_noise.flatten())) if return_logvar else denoised

    def _body(self, device: torch.device, force_fp32: bool) -> torch.dtype:
        if force_fp32:
            return torch.float32
        if self._compute_dtype is not None:
            return self._compute_dtype
        return torch.float16 if self.use_fp16 and device.type == "cuda" else torch.float32

    def _class_labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return x.new_zeros(len(x), self.label_dim)
        if labels.ndim != 2 or labels.shape[1] != self.label_dim or len(labels) not in (1, len(x)):
            expected = f"one-hot rows ({len(x)}, {self.label_dim}), or None"
            raise InputError("class_labels", tuple(labels.shape), expected)
        return labels.to(torch.float32).expand(len(x), -1)

    def _augment_labels(self, labels: Tensor, x: Tensor) -> Tensor:
        width = int(self.config.get("augment_dim", 0))
        if not width:
            raise InputError("augment_labels", tuple(labels.shape), "None: this network was built without augment_dim")
        if labels.ndim != 2 or labels.shape[1] != width or len(labels) not in (1, len(x)):
            raise InputError("augment_labels", tuple(labels.shape), f"rows ({len(x)}, {width}), or None")
        return labels.to(torch.float32)


class _UNetPrecond(Preconditioned):
    """A preconditioning around SongUNet or DhariwalUNet, called ``model`` in the state dict."""

    outputs: ClassVar[int] = 1  # output channels per image channel

    def __init__(
        self, img_resolution: int, img_channels: int, label_dim: int, use_fp16: bool, model_type: str, **model: Any
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16)
        channels = {"in_channels": img_channels, "out_channels": img_channels * self.outputs}
        self.model = MODELS[model_type](img_resolution=img_resolution, label_dim=label_dim, **channels, **model)

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The U-Net itself, F(x, c_noise)."""
        out: Tensor = self.model(x, c_noise, labels, augment_labels)
        return out


class EDMPrecond(_UNetPrecond):
    """EDM's own: inputs, outputs and targets of unit variance, c_noise = ln(sigma) / 4 (EDM, Table 1)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model)
        self.sigma_min, self.sigma_max, self.sigma_data = float(sigma_min), float(sigma_max), float(sigma_data)
        self.edm = EDM(self.sigma_data)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, c_noise)."""
        return self.edm.c_skip(sigma), self.edm.c_out(sigma), self.edm.c_in(sigma), self.edm.c_noise(sigma)


class Flow(Preconditioned):
    """A flow's network as a denoiser (`sims_core.flow`): it sees x_t = t (y + sigma n), is told t = 1 / (1 + sigma).

    prediction: 'velocity', E[y - n | x_t], so that D = x_t + (1 - t) F; or 'denoiser', so that D = F.
    """

    #: levels of training; t = 0 has an infinite one, and at t = 1 float32 cannot tell D from x
    LOWEST: ClassVar[float] = 1e-4
    HIGHEST: ClassVar[float] = 1e4
    prediction: str

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(t, 1 - t, t, t), or (0, 1, t, t) of a denoiser."""
        t = time_of(sigma)
        if self.prediction == "denoiser":
            return torch.zeros_like(t), torch.ones_like(t), t, t
        return t, sigma * t, t, t

    def schedule(self, steps: int) -> Tensor:
        """The noise levels of ``steps`` equal steps in t, which 'ddim' takes: Euler in the velocity's own time."""
        return sigma_of(torch.linspace(0, 1, steps + 1, dtype=torch.float64)).clamp(max=self.HIGHEST)


class FlowPrecond(Flow, _UNetPrecond):
    """The flow of SongUNet or DhariwalUNet. sigma_data: of the data, for samplers alone."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_data: float = 0.5,
        prediction: str = "velocity",
        model_type: str = "DhariwalUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model)
        self.sigma_data, self.prediction = float(sigma_data), prediction


class VPPrecond(_UNetPrecond):
    """Variance preserving: sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, the network told (M - 1) t.

    epsilon_t: the smallest t, which gives sigma_min; t = 1 gives sigma_max.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model)
        self.beta_d, self.beta_min, self.steps = float(beta_d), float(beta_min), M
        t = torch.tensor([epsilon_t, 1.0], device="cpu")  # float32: the published range has its rounding
        self.sigma_min, self.sigma_max = ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt().tolist()

    def time(self, sigma: Tensor) -> Tensor:
        """The t of a noise level, the inverse of sigma(t); in float32 as the published networks were trained."""
        log = (1 + sigma**2).log()
        return ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        """(1, -sigma, 1 / sqrt(sigma^2 + 1), (M - 1) t)."""
        return None, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.steps - 1) * self.time(sigma)


class VEPrecond(_UNetPrecond):
    """Variance exploding: the network sees x itself, and is told ln(sigma / 2)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    def coefficients(self, sigma: Tensor) -> tuple[None, Tensor, None, Tensor]:
        """(1, sigma, 1, ln(sigma / 2))."""
        return None, sigma, None, (0.5 * sigma).log()


class IDDPMPrecond(_UNetPrecond):
    """iDDPM: M noise levels u_j of a squared-sine schedule; the network, told M - 1 - j, also puts out a variance.

    u_M = 0 and u_{j-1}^2 = (u_j^2 + 1) / max(a_{j-1} / a_j, C_1) - 1, with a_j = sin^2(pi / 2 j / (M (C_2 + 1)))
    (EDM, Table 1 and Appendix C.3). The second half of the output channels, the variance, is not used.
    """

    outputs: ClassVar[int] = 2
    discrete: bool = True
    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model)
        self.steps = M
        steps = torch.arange(M + 1, device="cpu")  # float32 throughout: the published table has its rounding
        alphas = (0.5 * math.pi * steps / M / (C_2 + 1)).sin() ** 2
        ratios = (alphas[:-1] / alphas[1:]).clamp(min=C_1)
        levels = [torch.zeros([], device="cpu")]
        for ratio in ratios.flip(0):
            levels.append(((levels[-1] ** 2 + 1) / ratio - 1).sqrt())
        self.sigma_min, self.sigma_max = float(levels[1]), float(levels[-1])
        self.register_buffer("u", torch.tensor([float(level) for level in reversed(levels)]))

    def index(self, sigma: Tensor) -> Tensor:
        """The j of the nearest noise level u_j, int64 of the shape of ``sigma``."""
        return (sigma.to(self.u).unsqueeze(-1) - self.u).abs().argmin(-1)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels in the table above 0."""
        sigma = torch.as_tensor(sigma)
        return self.u[self.index(sigma).clamp(max=self.steps - 1)].to(sigma)

    def coefficients(self, sigma: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        """(1, -sigma, 1 / sqrt(sigma^2 + 1), M - 1 - j)."""
        return None, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.steps - 1 - self.index(sigma)).to(torch.float32)

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The U-Net's estimate of the noise, without its variance."""
        return super().raw(x, c_noise, labels, augment_labels)[:, : self.img_channels]
