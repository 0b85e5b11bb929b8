"""Corpora and tasks: the English text of `data/text/`, and what is made from it."""
