"""Exports: labelled samples in the formats of other tools.

    folder       export(): the new folder is written beside the target, then takes its place
    coco         the format "coco": annotations.json and images, and the Report of what was written
    categories   COCO's categories: the classes that occur in samples, with their keypoints

`export` gives the samples, one after another, to the writer of the format, which keeps none of them in memory.
"""

from .coco import Report
from .folder import FORMATS, check_format, export

__all__ = ["FORMATS", "Report", "check_format", "export"]
