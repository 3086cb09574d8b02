"""Binary convolutions: weights and inputs of one bit each."""

from __future__ import annotations

import torch.fx
from jaxtyping import Float
from torch import Tensor, nn

from headgate.ops.sign import sign


@torch.fx.wrap  # a node of its own in anyone's graph: what the sign does depends on whether a gradient is wanted
def binary_operands(
    x: Float[Tensor, "n c_in h w"], weight: Float[Tensor, "c_out c_in_per_conv_group kh kw"]
) -> tuple[Float[Tensor, "n c_in h w"], Float[Tensor, "c_out c_in_per_conv_group kh kw"]]:
    """Input and weight of a binary convolution: sign(x), and α · sign(W) with α the mean |W| of each output channel.

    α multiplies whole sums of signs, so in hardware it is one multiplication per output, which the norm behind absorbs.
    The gradient takes both ways to the weight, through the sign and through α.

    Source: Rastegari et al., "XNOR-Net", ECCV 2016, sections 3.1 and 3.2; without its scaling factors of the input,
        which it finds to matter little.
    """
    scale = weight.abs().mean((1, 2, 3), keepdim=True)
    return sign(x), scale * sign(weight)


class BinaryConv2d(nn.Conv2d):
    """A convolution of the signs of its input with the signs of its weight, scaled per output channel.

    Parameters, and with them state dicts, are those of `nn.Conv2d`: the weight is the real-valued one that training
    moves. Padding is of zeros, put around the signs: at the border a sum has fewer terms instead of made-up ones, as
    in the published networks, and an engine of XNOR and popcount leaves those taps out. So the padded map has three
    values, −1, 0 and +1. Under autocast the signs are exact in any dtype; α is rounded to it.

    Source: see `binary_operands`.
    """

    def forward(self, input: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """Binarise both operands, and convolve."""
        x, weight = binary_operands(input, self.weight)
        return self._conv_forward(x, weight, self.bias)  # type: ignore[no-any-return]
