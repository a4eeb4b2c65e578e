"""Diffusers and PEFT: LoRA of the network of Stable Diffusion 1.5, on latents and encoded texts."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig

unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
unet.requires_grad_(False)
unet.to("cuda", dtype=torch.bfloat16)
unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
unet.enable_gradient_checkpointing()
unet.train()
scheduler = DDPMScheduler(num_train_timesteps=1000)
weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(weights, lr=1e-4)
for _ in range(10):
    latents = torch.randn(8, 4, 64, 64, device="cuda", dtype=torch.bfloat16)
    texts = torch.randn(8, 77, 768, device="cuda", dtype=torch.bfloat16)
    noise = torch.randn_like(latents)
    times = torch.randint(0, 1000, (8,), device="cuda")
    predicted = unet(scheduler.add_noise(latents, noise, times), times, texts).sample
    loss = F.mse_loss(predicted.float(), noise.float())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()
