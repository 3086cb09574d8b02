"""Weight initialisation that all of headgate's own models share."""

from torch import nn


def initialise_(model: nn.Module) -> None:
    """Draw He-normal convolutions, set batch norms to identity; linear layers keep torch's default.

    Source: He et al., "Delving deep into rectifiers", ICCV 2015 (fan_out, as torchvision's ResNet).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
