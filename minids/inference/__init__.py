"""From logits to tokens: sampling, speculative decoding, evaluation."""
