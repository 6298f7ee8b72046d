"""A small model with self- and cross-attention, for the policy in choosing_a_kernel.md."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """K and V come from ``context``."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(64, 64)

    def forward(self, x, context):
        tensors = self.q(x), *self.kv(context).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (2, 32)).transpose(1, 2) for t in tensors)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, then cross-attention to the text."""

    def __init__(self):
        super().__init__()
        self.attn, self.cross = Attention(), Attention()

    def forward(self, x, text):
        x = x + self.attn(x, x)
        return x + self.cross(x, text)


class Model(nn.Module):
    """Four blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x, text):
        for block in self.blocks:
            x = block(x, text)
        return x


model = Model().eval().requires_grad_(False)
inputs = (torch.randn(2, 256, 64), torch.randn(2, 77, 64))

if __name__ == "__main__":
    torch.compile(model, backend="attnpass")(*inputs)
