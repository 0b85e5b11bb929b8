"""The linear layer: it knows how its matrix is stored, and whether its input is rounded.

A matrix is a parameter, or the codes and scales of a file in the released formats (FP8, FP4); for
products with codes see `minids.model.packed`. Rounding the input is for serving (report 3.4), see
`minids.weights.rounding.serving`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids import numerics
from minids.model import packed


class Linear(nn.Linear):
    """y = x W^T, without a bias. x: ... i -> ... o."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.round_input = False        # to FP8, in blocks of 128
        self.codes: Tensor | None = None
        self.scale: Tensor | None = None
        self.dtype = torch.float32      # that codes are decoded to

    def store(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        """Hold the matrix as a file does, in place of `weight`; its numbers are of `dtype`.

        codes: float8_e4m3fn (FP8) or int8 (FP4) with their scale, or plain numbers without one.
        """
        self.register_parameter("weight", None)
        self.codes, self.scale, self.dtype = codes, scale, dtype

    def matrix(self) -> Tensor:
        """The numbers of W, o x i."""
        if self.codes is None:
            return self.weight
        if self.scale is None:
            return self.codes.to(self.dtype)
        return packed.decode(self.codes, self.scale, self.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """The input as the product takes it."""
        return numerics.fake_quant(x, "fp8_act") if self.round_input else x

    def forward(self, x: Tensor) -> Tensor:
        x = self.rounded(x)
        if self.codes is None or self.scale is None:
            return F.linear(x, self.matrix())
        return packed.linear(x, self.codes, self.scale, self.dtype)

    def grouped(self, x: Tensor) -> Tensor:
        """Each of g groups of rows of W with an input of its own: g N i -> g N o/g."""
        g = len(x)
        rows = self.out_features // g
        if self.codes is None or self.scale is None or rows % 128:
            return torch.bmm(x, self.matrix().view(g, -1, x.shape[-1]).mT)
        scales = self.scale.view(g, -1, self.scale.shape[1])
        return torch.stack([packed.linear(run, codes, scale, self.dtype) for run, codes, scale
                            in zip(x, self.codes.view(g, rows, -1), scales)])
