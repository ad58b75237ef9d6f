"""Pictures: files and arrays in, pixels of any size out, with everything a picture carries.

The only place of file formats and of rounding. Sizes are (height, width), arrays (height, width, channels).
"""

from liif_cli.images.animation import MOVING, Animation, check_animation, read_animation, write_animation
from liif_cli.images.arrays import from_array, to_array
from liif_cli.images.compose import compose, layers, layers_bytes
from liif_cli.images.drawn import looks_drawn
from liif_cli.images.fit import fitted
from liif_cli.images.flat import keep_flat
from liif_cli.images.formats import FORMATS, Format, check_output, encoding_px, format_of
from liif_cli.images.header import Header, may_move, read_header
from liif_cli.images.picture import Picture
from liif_cli.images.pillow import from_pil, to_pil
from liif_cli.images.read import DEFAULT_MAX_PIXELS, EXTENSIONS, read
from liif_cli.images.write import Writer, open_writer, write, writer_bytes

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "EXTENSIONS",
    "FORMATS",
    "MOVING",
    "Animation",
    "Format",
    "Header",
    "Picture",
    "Writer",
    "check_animation",
    "check_output",
    "compose",
    "encoding_px",
    "fitted",
    "format_of",
    "from_array",
    "from_pil",
    "keep_flat",
    "layers",
    "layers_bytes",
    "looks_drawn",
    "may_move",
    "open_writer",
    "read",
    "read_animation",
    "read_header",
    "to_array",
    "to_pil",
    "write",
    "write_animation",
    "writer_bytes",
]
