"""A GPT in plain PyTorch that computes attention itself, like the code of tutorials."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, TOKENS, LENGTH, BATCH = 768, 12, 12, 50304, 1024, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x):
        parts = self.attention(self.first(x)).split(WIDTH, dim=2)
        query, key, value = (part.view(BATCH, LENGTH, HEADS, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
        return x + self.feed(self.second(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, text, targets):
        x = self.tokens(text) + self.places(torch.arange(LENGTH, device=text.device))
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(self.last(x)).view(-1, TOKENS), targets.view(-1))


model = GPT().cuda()
optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)
for _ in range(100):
    text = torch.randint(0, TOKENS, (BATCH, LENGTH), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(text, text)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
