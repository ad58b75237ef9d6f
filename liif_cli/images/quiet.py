"""Pillow and libvips speak to the terminal of their own accord; here they are asked to raise or be silent.

Pillow warns through `warnings`, whose filters belong to the whole process and are not safe to swap from several
threads. So the first reader in silences and the last one out restores, under a lock that is held only for that
moment. The same goes for how much Pillow lets a chunk of a PNG file unpack to, and how many pixels a picture has.
"""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from PIL import Image, PngImagePlugin

_MOST_PIXELS = 1 << 30
_lock = threading.Lock()
_inside = 0
_outside: contextlib.ExitStack | None = None  # what the last one out restores

# Without any handler Python prints a library's warnings to stderr as a last resort; a program's own handlers still
# work.
for _name in ("PIL", "pyvips"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings inside the block, in every thread that is inside one; restore the filters after the last."""
    global _inside, _outside
    with _lock:
        _inside += 1
        if _inside == 1:
            _outside = contextlib.ExitStack()
            _outside.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            # Pillow takes a profile or text of more than 1 MB for an attack, and printers' profiles are larger.
            _outside.callback(setattr, PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_CHUNK)
            PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
            # The caller's limit holds (`read.check_pixels`); Pillow refuses what has more than twice its own.
            _outside.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _outside is not None:
                _outside.close()
                _outside = None


_vips: Any = None


def vips() -> Any:
    """Return the pyvips module, loaded on first use; ImportError where it or its library is missing."""
    global _vips
    with _lock:
        if _vips is None:
            import pyvips

            # Nothing here is computed twice: a cache of results would only hold memory.
            pyvips.cache_set_max(0)
            # A buffer a thread: many cores would otherwise multiply the memory of a stream.
            limit = min(os.cpu_count() or 1, 8)
            if pyvips.vips_lib.vips_concurrency_get() > limit:
                pyvips.vips_lib.vips_concurrency_set(limit)
            _vips = pyvips
        return _vips
