"""Pictures of labels: a contact sheet of samples, which shows what is trained on. Pillow and numpy only.

    shown      what of a sample can be drawn, checked and in pixels
    images     which arrays are pictures, whatever their names, and how their values are shown
    points     which arrays are points in an image, as the sample declares
    drawing    the image with its annotations: masks, boxes, keypoints, names
    tiles      each label of pixels as a picture of its own
    legend     what the colours and marks mean
    contact    contact_sheet(): lays all of these out
    canvas     the drawing surface for lines, marks and text
    colours    colours of ids, depths, directions and motion
    box3d      the edges of a 3D box in an image
    skeleton   which keypoints of an object are joined

A sample becomes a `Shown`. `annotated` draws its image, `tile` each of its labels, and `drawn_picture` each other
image. The sheet puts them side by side, one block a sample, and the legend below.
"""

from .contact import contact_sheet

__all__ = ["contact_sheet"]
