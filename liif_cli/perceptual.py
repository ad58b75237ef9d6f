"""LPIPS (Zhang et al., CVPR 2018), a learned distance between pictures, from the package of that name."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray

from liif_cli.errors import InputError, ModelError, UsageError


class Lpips:
    """The distance with the AlexNet features, which papers report. Smaller is more alike."""

    LEAST_SIDE = 32  # of the pictures

    def __init__(self) -> None:
        """Load the network; its package downloads the features' weights when it is first used.

        Raises UsageError where the extra is not installed, ModelError where the weights are not to be had.
        """
        try:
            import lpips
        except ImportError:
            raise UsageError("--lpips needs the package lpips: pip install lpips") from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torchvision's own arguments
                self._network = lpips.LPIPS(net="alex", verbose=False).eval()
        except Exception as error:  # from downloads and files of another project
            first_line = str(error).partition("\n")[0]
            raise ModelError(f"LPIPS: its weights cannot be loaded: {first_line}; run without --lpips") from None

    def __call__(self, image: NDArray[Any], truth: NDArray[Any]) -> float:
        """Distance of two (H, W, 3) float pictures in [0, 1]. Raises InputError below 32 pixels a side."""
        if min(image.shape[:2]) < self.LEAST_SIDE:
            raise InputError(
                f"{image.shape[1]}x{image.shape[0]} pixels, without the border, are too few for LPIPS, which needs 32 a"
                " side; use a smaller scale or larger pictures, or leave --lpips out"
            )
        pair = (torch.from_numpy(x).permute(2, 0, 1)[None].float() * 2 - 1 for x in (image, truth))
        with torch.inference_mode():
            return float(self._network(*pair))
