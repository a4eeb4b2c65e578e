"""Sentence Transformers: its documentation's training of a reranker."""

from datasets import load_dataset
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    losses,
)

model = CrossEncoder("bert-base-cased", num_labels=1)
data = load_dataset("nyu-mll/glue", "mrpc", split="train").remove_columns("idx")
loss = losses.BinaryCrossEntropyLoss(model)
arguments = CrossEncoderTrainingArguments(
    output_dir="out/cross-encoder", per_device_train_batch_size=32, report_to="none", save_strategy="no"
)
CrossEncoderTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
