"""torchvision: Faster R-CNN, as in its tutorial on object detection."""

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5).cuda()
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.005, momentum=0.9)
model.train()
for _ in range(10):
    images = [torch.rand(3, 480, 640, device="cuda") for _ in range(4)]
    boxes = torch.tensor([[10.0, 20.0, 200.0, 300.0], [50.0, 60.0, 400.0, 420.0]])
    targets = [{"boxes": boxes.cuda(), "labels": torch.tensor([1, 2]).cuda()} for _ in images]
    loss = sum(model(images, targets).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
