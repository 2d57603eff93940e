"""Export of models to files for other runtimes, with a check of every file on real images."""

from typing import TYPE_CHECKING

from pathprune.lazy import import_on_use

if TYPE_CHECKING:
    from pathprune.export.checkpoint import export_checkpoint
    from pathprune.export.exporter import ExportedFile, export_model
    from pathprune.export.formats import ExportError, Format, choose_formats
else:
    __getattr__ = import_on_use(__name__)

__all__ = ["ExportError", "ExportedFile", "Format", "choose_formats", "export_checkpoint", "export_model"]
