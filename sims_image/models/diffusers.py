"""Networks between diffusers' folders and checkpoints, both ways: ``import-diffusers`` and ``export-diffusers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sims_core.errors import InputError
from sims_core.guidance import merge_weights
from sims_core.lab.placing import placed
from sims_core.lab.runs import followed, provenance, write_json
from sims_core.torch_learner import ADAPTER
from sims_image.models import adapters, autoencoders, checkpoints, hf
from sims_image.models.checkpoints import IMPORTED_PRESET, RECORD, Checkpoint, Ema, Record, load, save
from sims_image.models.fitting import build_with
from sims_image.models.networks import imported

#: of an exported pair: the folder of its auxiliary, and its omega
AUXILIARY, PAIR = "auxiliary", "sims.json"


def import_diffusers(
    folder: str | Path, out: str | Path = "", *, scheduler: str = "", replace: bool = False, argument: str = "folder"
) -> Checkpoint:
    """Write the network in a folder of diffusers as the checkpoint ``out``, float32 (default: named after it, here).

    scheduler: in place of the folder's own: a folder or file of its settings, or the name of a class. Raises
    `InputError`: nothing that is read is there (it says what), or ``out`` cannot be written.
    """
    found = hf.read(folder, scheduler=scheduler, argument=argument)
    network = build_with(found.config, found.tensors(argument), str(folder), argument=argument)
    latents, other = autoencoders.of_pipeline(Path(folder), argument=argument)
    left_out = [*found.left_out, *([other] if other else [])]
    source = {
        "source": str(found.path),
        "source_sha256": found.sha256,
        **({"left_out": left_out} if left_out else {}),
        "imported": provenance(),
    }
    out = Path(out or Path(folder).resolve().name)
    if (out / RECORD).exists() and not replace:
        words = "a checkpoint is there; `replace` writes over it, or name another folder with `out`"
        raise InputError("out", str(out), words)
    record = Record(preset=IMPORTED_PRESET, ema=Ema("unknown"), provenance=source)
    save(out, network, record, replace=replace, autoencoder=latents)
    return load(out)


def export_diffusers(
    checkpoint: str | Path, out: str | Path, *, auxiliary: str = "", omega: float | None = None, merge: bool = False
) -> list[str]:
    """Write an imported network as the folder ``out`` that diffusers loads; returns the lines that load it.

    auxiliary: of a guided pair, the second checkpoint; an adapter of peft's if it is one on this base, else
    a second network. omega: of the pair. merge: Neon, one network of both. Raises `InputError` for a network that no
    class of diffusers can hold, and where ``out`` is taken.
    """
    for name, value in (("checkpoint", checkpoint), ("out", out)):
        if not str(value):
            raise InputError(name, "", "name the checkpoint to read" if name == "checkpoint" else "name a new folder")
    if bool(auxiliary) != (omega is not None) or (merge and not auxiliary):
        raise InputError("omega", omega, "a guided pair takes both an `auxiliary` and an `omega`")
    base, out = _imported(checkpoint, "checkpoint"), followed(out)
    if out.exists():
        raise InputError("out", str(out), "something is there; name a folder that does not exist")
    second = _imported(auxiliary, "auxiliary") if auxiliary else None
    if second is not None and second.config != base.config:
        raise InputError("auxiliary", auxiliary, "another architecture than the base's")
    if second is not None and omega is not None and merge:
        merged = merge_weights(base.network.state_dict(), second.network.state_dict(), omega)
        base.network.load_state_dict(merged)
        second = None
    with placed(out) as folder:
        lines = _write_network(base, folder, out)
        if second is not None:
            write_json(folder / PAIR, {"auxiliary": AUXILIARY, "omega": omega})
            lines += _write_auxiliary(second, base, folder, out, omega)
    return lines


def _imported(path: str | Path, argument: str) -> Checkpoint:
    found = load(path, argument=argument)
    if isinstance(found.network, imported.Imported):
        return found
    words = "no class of diffusers holds EDM's networks; in its loops take sims_core.denoiser.to_network(D, scheduler)"
    raise InputError(argument, str(path), f"{words}, with D of sims_image.load_model({str(path)!r}).denoiser(None)")


def _module(found: Checkpoint) -> Any:
    """The library's own."""
    return found.network.model


def _part(base: Checkpoint) -> str:
    return "unet" if base.config["model"]["_class_name"] == "UNet2DModel" else "transformer"


def _latents(base: Checkpoint) -> Any:
    """The library's own autoencoder of a network's latents, or None. Raises `InputError` where no pipeline has it."""
    held = base.autoencoder
    if held is None or not held.files:
        return None
    if held != held.like(autoencoders.read(held.folder, argument="checkpoint")):
        words = "its latents are on another scale than their autoencoder's, which diffusers' pipelines do not know"
        raise InputError("checkpoint", str(base.path), words)
    return autoencoders.load(held, argument="checkpoint").module


def _pipeline(base: Checkpoint) -> tuple[str, dict[str, Any]] | None:
    """diffusers' class for a network and its parts besides network and scheduler; None where there is none."""
    latents = _latents(base)
    if _part(base) == "transformer":
        return None if latents is None else ("DiTPipeline", {"vae": latents})
    if base.config["label_dim"]:
        return None
    if latents is not None:
        return "LDMPipeline", {"vqvae": latents}
    return "DDIMPipeline" if base.config["scheduler"]["_class_name"] == "DDIMScheduler" else "DDPMPipeline", {}


def _write_network(base: Checkpoint, folder: Path, out: Path) -> list[str]:
    """The network, its scheduler and its autoencoder, as a pipeline where diffusers has one of these parts."""
    scheduler, name, part = imported.make(base.config["scheduler"]), base.config["model"]["_class_name"], _part(base)
    if found := _pipeline(base):
        kind, parts = found
        pipe = getattr(imported.library(), kind)(**{part: _module(base)}, scheduler=scheduler, **parts)
        pipe.save_pretrained(folder)
        return [f'pipe = diffusers.{kind}.from_pretrained("{out}")']
    _module(base).save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    if (latents := _latents(base)) is not None:
        latents.save_pretrained(folder / "vae")
    return [f'{part} = diffusers.{name}.from_pretrained("{out}", subfolder="{part}")']


def _write_auxiliary(second: Checkpoint, base: Checkpoint, folder: Path, out: Path, omega: float | None) -> list[str]:
    part, name = _part(base), base.config["model"]["_class_name"]
    network = f"pipe.{part}" if (folder / hf.INDEX).exists() else part
    if second.adapter is not None and second.adapter.base_sha256 == base.sha256:
        (folder / AUXILIARY).mkdir()
        adapters.for_peft(checkpoints.weights_of(second), second.adapter, folder / AUXILIARY)
        loaded = f'peft.PeftModel.from_pretrained({network}, "{out}/{AUXILIARY}", adapter_name="{ADAPTER}")'
        return [f'{network} = sims_core.guide({loaded}, "{ADAPTER}", {omega:g})']
    _module(second).save_pretrained(folder / AUXILIARY)
    loaded = f'diffusers.{name}.from_pretrained("{out}", subfolder="{AUXILIARY}")'
    return [f"{network} = sims_core.guide({network}, {loaded}, {omega:g})"]
