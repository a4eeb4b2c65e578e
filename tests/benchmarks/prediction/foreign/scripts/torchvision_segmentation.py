"""torchvision: DeepLabV3 with its second output, as in its reference training."""

import torch
from torchvision.models.segmentation import deeplabv3_resnet50

model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for _ in range(10):
    images = torch.rand(8, 3, 480, 480, device="cuda")
    target = torch.randint(0, 21, (8, 480, 480), device="cuda")
    output = model(images)
    losses = [torch.nn.functional.cross_entropy(output[name], target, ignore_index=255) for name in ("out", "aux")]
    optimizer.zero_grad()
    (losses[0] + 0.5 * losses[1]).backward()
    optimizer.step()
