"""Four layers of causal attention, and one with a mask and one wide head: for the block in reading_the_log.md."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """``heads`` heads on all channels; ``mask`` takes the place of ``is_causal``."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x, mask=None):
        q = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, mask, is_causal=mask is None).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """The mask is an input of ``last``."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention(heads=4) for _ in range(4))
        self.last = Attention(heads=1)

    def forward(self, x, mask):
        for block in self.blocks:
            x = block(x)
        return self.last(F.pad(x, (0, 264)), mask)  # 520 channels


model = Model().eval()
inputs = (torch.randn(2, 128, 256), torch.rand(2, 1, 128, 128) < 0.9)

if __name__ == "__main__":
    torch.compile(model, backend="attnpass")(*inputs)
