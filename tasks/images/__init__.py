"""Images: an image reference -> safe, upright, downscaled bytes.

In: what a dataset's image column holds (a path, URI, URL, data URI or bytes), all of it untrusted.
Out: an identity for the row key, and a JPEG, PNG or WebP that can be sent to the model; or a
`RowError` that says what is wrong with that image.
"""

from .prepare import ImageSettings, PreparedImage, prepare_image
from .reader import ImageReader
from .references import ImageBase, image_refs

__all__ = [
    "ImageBase",
    "ImageReader",
    "ImageSettings",
    "PreparedImage",
    "image_refs",
    "prepare_image",
]
