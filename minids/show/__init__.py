"""Plots and widgets that notebooks share."""
