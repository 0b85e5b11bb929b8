"""Pre-training: what a step reads, what it optimises, and the folder of a run."""
