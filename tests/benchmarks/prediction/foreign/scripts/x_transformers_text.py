"""x-transformers: its README's autoregressive model on bytes, with rotary positions and accumulated gradients."""

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

layers = Decoder(dim=768, depth=12, heads=12, rotary_pos_emb=True, attn_flash=True)
model = AutoregressiveWrapper(TransformerWrapper(num_tokens=256, max_seq_len=1024, attn_layers=layers)).cuda()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
for _ in range(10):
    for _ in range(4):
        loss = model(torch.randint(0, 256, (4, 1025), device="cuda"))
        (loss / 4).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
