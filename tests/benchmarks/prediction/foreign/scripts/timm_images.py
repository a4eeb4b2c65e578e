"""timm: a model, its data configuration, optimizer, scheduler and average of weights."""

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

model = timm.create_model("convnext_base", num_classes=4, drop_path_rate=0.1).cuda()
config = resolve_data_config({}, model=model)
data = create_dataset("", root="images", is_training=True)
loader = create_loader(data, config["input_size"], batch_size=16, is_training=True, num_workers=0, re_prob=0.25)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
scheduler = CosineLRScheduler(optimizer, t_initial=10)
average = ModelEmaV3(model, decay=0.9998)
loss = LabelSmoothingCrossEntropy()
for epoch in range(10):
    for images, labels in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss(model(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        average.update(model)
    scheduler.step(epoch)
