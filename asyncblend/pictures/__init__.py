"""Pictures of labels: a contact sheet of samples, to see what is trained on. Pillow and numpy only.

colours   ids, depth, directions and motion as colours
shown     what of an item can be drawn
drawing   annotations on the image
tiles     each label as a picture
legend    what colours and marks mean
contact   the sheet
"""

from .contact import contact_sheet

__all__ = ["contact_sheet"]
