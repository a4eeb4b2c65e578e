"""transformers: Whisper small on log-mel spectrograms with its sequence-to-sequence Trainer."""

import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

config = WhisperConfig(
    d_model=768,
    encoder_layers=12,
    decoder_layers=12,
    encoder_attention_heads=12,
    decoder_attention_heads=12,
    encoder_ffn_dim=3072,
    decoder_ffn_dim=3072,
)
model = WhisperForConditionalGeneration(config)
data = [
    {"input_features": torch.randn(80, 3000), "labels": torch.randint(0, 50000, (120,)).tolist()} for _ in range(64)
]
arguments = Seq2SeqTrainingArguments(
    output_dir="out/whisper",
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    gradient_checkpointing=True,
    fp16=True,
    report_to="none",
    save_strategy="no",
)
Seq2SeqTrainer(model, arguments, train_dataset=data).train()
