"""Where a training is going to write, looked at before it begins.

A cache of clips, an export or a checkpoint that cannot be written costs what was done until then.
"""

from __future__ import annotations

from pathlib import Path

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lingbot.codec.training import CodecModule
from lingbot.data.blockworld_module import BlockWorldDataModule
from lingbot.data.file_checks import check_output_folder
from lingbot.run_export import check_codec_export


def check_places(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, export_dir: str | None
) -> None:
    """Refuses folders that take no files; none is made.

    Args:
        export_dir: of a trained world; None where there is none.

    Raises:
        ValueError, FileExistsError: naming the option and the folder.
    """
    places: dict[str, str | Path | None] = {"export_dir": export_dir}
    if isinstance(module, CodecModule) and module.export_to is not None:
        check_codec_export(Path(module.export_to))
        places["module.export_to"] = module.export_to
    if isinstance(data, BlockWorldDataModule) and data.bytes_to_encode:
        places["paths.data_dir"] = data.cache_dir
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint):
            places["callbacks.checkpoint.dirpath"] = callback.dirpath
    for option, place in places.items():
        if place is None or "://" in str(place):
            continue
        try:
            check_output_folder(place)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error
