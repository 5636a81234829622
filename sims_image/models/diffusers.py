"""Networks between diffusers' folders and checkpoints, both ways: ``import-diffusers`` and ``export-diffusers``."""

from __future__ import annotations

from pathlib import Path

from sims_core.errors import InputError
from sims_core.lab.runs import provenance
from sims_image.models import hf
from sims_image.models.checkpoints import IMPORTED_PRESET, RECORD, Checkpoint, Ema, Record, load, save
from sims_image.models.fitting import build_with


def import_diffusers(
    folder: str | Path, out: str | Path, *, scheduler: str = "", replace: bool = False, argument: str = "folder"
) -> Checkpoint:
    """Write the network in a folder of diffusers as the checkpoint ``out``, float32.

    scheduler: in place of the folder's own: a folder or file of its settings, or the name of a class. Raises
    `InputError`: nothing that is read is there (it says what), or ``out`` cannot be written.
    """
    found = hf.read(folder, scheduler=scheduler, argument=argument)
    network = build_with(found.config, found.tensors(argument), str(folder), argument=argument)
    source = {
        "source": str(found.path),
        "source_sha256": found.sha256,
        **({"left_out": list(found.left_out)} if found.left_out else {}),
        "imported": provenance(),
    }
    if (Path(out) / RECORD).exists() and not replace:
        words = "a checkpoint is there; `replace` writes over it, or name another folder with `out`"
        raise InputError("out", str(out), words)
    save(out, network, Record(preset=IMPORTED_PRESET, ema=Ema("unknown"), provenance=source), replace=replace)
    return load(out)
