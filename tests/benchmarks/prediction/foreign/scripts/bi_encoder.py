"""Sentence Transformers: its documentation's training of an embedding model with in-batch negatives."""

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)

model = SentenceTransformer("bert-base-cased")
data = load_dataset("pairs", split="train")
loss = losses.MultipleNegativesRankingLoss(model)
arguments = SentenceTransformerTrainingArguments(
    output_dir="out/bi-encoder", per_device_train_batch_size=32, bf16=True, report_to="none", save_strategy="no"
)
SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
