"""Pillow and libvips speak to the terminal of their own accord; here they are asked to raise or be silent.

Pillow warns through `warnings`, whose filters belong to the whole process and are not safe to swap from several
threads. So the first reader in silences and the last one out restores, under a lock that is held only for that
moment.
"""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_inside = 0
_silence: Any = None

# Without any handler Python prints a library's warnings to stderr as a last resort; a program's own handlers still
# work.
for _name in ("PIL", "pyvips"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings inside the block, in every thread that is inside one; restore the filters after the last."""
    global _inside, _silence
    with _lock:
        _inside += 1
        if _inside == 1:
            _silence = warnings.catch_warnings()
            _silence.__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _silence is not None:
                _silence.__exit__(None, None, None)
                _silence = None


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
