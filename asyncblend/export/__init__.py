"""Labelled samples in the formats of other tools.

formats   the formats by name; a new one goes there
staging   a folder that is whole, or as it was
coco      COCO's annotations.json and images
"""

from .formats import FORMATS, export
from .report import Report

__all__ = ["FORMATS", "Report", "export"]
