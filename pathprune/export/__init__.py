"""Export of models to files for other runtimes, with a check of every file on real images."""

from pathprune.export.checkpoint import export_checkpoint
from pathprune.export.exporter import ExportedFile, export_model
from pathprune.export.formats import ExportError, Format, choose_formats

__all__ = ["ExportError", "ExportedFile", "Format", "choose_formats", "export_checkpoint", "export_model"]
