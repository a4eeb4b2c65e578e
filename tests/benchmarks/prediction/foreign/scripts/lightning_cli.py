"""Lightning: its command line, with the language model from its demonstrations."""

import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.transformer import LightningTransformer


class Texts(torch.utils.data.Dataset):
    """Random texts of 512 tokens, each with the text that follows it."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, 33278, (513,))
        return tokens[:-1], tokens[1:]


class Model(LightningTransformer):
    """The demonstration's model on these texts."""

    def prepare_data(self) -> None: ...

    def train_dataloader(self) -> torch.utils.data.DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        return torch.utils.data.DataLoader(Texts(), batch_size=32)


LightningCLI(Model)
