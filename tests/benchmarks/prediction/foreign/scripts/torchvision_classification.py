"""torchvision: a ResNet with SGD, mixed precision in float16 and channels last."""

import torch
from torchvision import datasets, models, transforms

steps = transforms.Compose([transforms.RandomResizedCrop(224), transforms.ToTensor()])
loader = torch.utils.data.DataLoader(datasets.ImageFolder("images", steps), batch_size=64, shuffle=True)
model = models.resnet50(weights=None, num_classes=4).to("cuda", memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
scaler = torch.amp.GradScaler("cuda")
for _ in range(10):
    for images, labels in loader:
        images = images.to("cuda", memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast("cuda"):
            loss = torch.nn.functional.cross_entropy(model(images), labels.cuda())
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
