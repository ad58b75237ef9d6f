"""Photographs at any size with LIIF (Chen, Liu, Wang, "Learning Continuous Image Representation with Local Implicit
Image Function", CVPR 2021)."""

__version__ = "0.1.0"
