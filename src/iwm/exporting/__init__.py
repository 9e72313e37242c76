"""A trained model in the formats of others. A format is one class in one table, found by its name."""

from iwm.exporting.format import ExportFormat
from iwm.exporting.graphs import OnnxGraphs, TorchPrograms
from iwm.exporting.hub_folder import HubFolder
from iwm.exporting.own_layout import OwnLayout
from iwm.exporting.timm_layout import TimmLayout
from iwm.runtime.registry import Registry

FORMATS = Registry(
    ExportFormat, "--format", "register_format", OwnLayout, TimmLayout, OnnxGraphs, TorchPrograms, HubFolder
)
"""Export formats by name, in the order in which they are listed."""
register_format = FORMATS.register

__all__ = ["FORMATS", "ExportFormat", "register_format"]
