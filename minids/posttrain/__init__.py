"""Post-training: supervised fine-tuning, GRPO, on-policy distillation."""
