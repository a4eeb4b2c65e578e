"""PEFT: its quick tour's prompt tuning of GPT-2 medium with the Trainer of transformers."""

from datasets import load_dataset
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

tokenizer = AutoTokenizer.from_pretrained("gpt2-medium")
model = AutoModelForCausalLM.from_pretrained("gpt2-medium")
model = get_peft_model(model, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=20))
data = load_dataset("texts", split="train").map(
    lambda line: tokenizer(line["text"], truncation=True, max_length=512), remove_columns="text"
)
arguments = TrainingArguments(
    output_dir="out/prompts", per_device_train_batch_size=8, report_to="none", save_strategy="no"
)
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
Trainer(model, arguments, train_dataset=data, data_collator=collate).train()
