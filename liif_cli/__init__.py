"""Photographs at any size with LIIF (Chen, Liu, Wang, "Learning Continuous Image Representation with Local Implicit
Image Function", CVPR 2021).

    import liif_cli
    model = liif_cli.load()
    big = model.upscale(image, scale=2.7)   # a PIL image or a numpy array; the same kind comes back
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from liif_cli.upscaler import load


def __getattr__(name: str) -> Any:
    # torch is imported when it is needed: the command line's help must not wait for it.
    if name == "load":
        from liif_cli.upscaler import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
