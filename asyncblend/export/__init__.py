"""Exports: labelled samples in the formats of other tools.

    folder       export(): the new folder is written beside the target, then takes its place
    own_files    the list of an export's files, which a later one replaces
    plan         what is asked for, such as the splits, and the Report of what was written
    coco         the format "coco": annotations.json and images
    yolo         the format "yolo": images, text files and data.yaml
    bop          the format "bop": scenes with poses, masks and depth; models.py writes its models
    parquet      the format "parquet": rows of typed columns; columns.py makes them
    categories   the classes that occur in samples, with their keypoints
    labels       whether samples have the labels that a format needs
    images       the files of images
    outline      the outline of a mask as one polygon

`export` gives the samples, one after another, to the writer of the format, which keeps none of them in memory.
"""

from .folder import FORMATS, check_format, export
from .plan import TASKS, Report

__all__ = ["FORMATS", "TASKS", "Report", "check_format", "export"]
