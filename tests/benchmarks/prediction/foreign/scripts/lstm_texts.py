"""A language model with LSTM layers, truncated backpropagation through time and clipped gradients."""

import torch
from torch import nn


class Model(nn.Module):
    """Embedding, three LSTM layers with dropout, output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(33278, 1024)
        self.lstm = nn.LSTM(1024, 1024, 3, dropout=0.2)
        self.output = nn.Linear(1024, 33278)

    def forward(self, tokens: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None):
        found, state = self.lstm(self.embedding(tokens), state)
        return self.output(found), state


model = Model().cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
state = None
for _ in range(10):
    tokens = torch.randint(0, 33278, (71, 64), device="cuda")
    logits, state = model(tokens[:-1], state)
    state = tuple(part.detach() for part in state)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    optimizer.step()
