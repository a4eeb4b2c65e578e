"""Diffusers: its tutorial's training of an unconditional diffusion model, with Accelerate."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup

model = UNet2DModel(
    sample_size=128,
    in_channels=3,
    out_channels=3,
    layers_per_block=2,
    block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
)
scheduler = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
rate = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=500, num_training_steps=1000)
loader = torch.utils.data.DataLoader(torch.rand(128, 3, 128, 128), batch_size=16, shuffle=True)
accelerator = Accelerator(mixed_precision="fp16")
model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
for _ in range(10):
    for images in loader:
        noise = torch.randn(images.shape, device=images.device)
        times = torch.randint(0, 1000, (images.shape[0],), device=images.device)
        noisy = scheduler.add_noise(images, noise, times)
        with accelerator.accumulate(model):
            loss = F.mse_loss(model(noisy, times, return_dict=False)[0], noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
