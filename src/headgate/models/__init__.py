"""Networks for small images, and torchvision's and timm's, by name."""

from headgate.models.registry import Architecture, create, identify, names

__all__ = ["Architecture", "create", "identify", "names"]
