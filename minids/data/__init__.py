"""What models read: the books of `data/text/`, and stories and problems that programs write."""
