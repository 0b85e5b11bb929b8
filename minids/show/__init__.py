"""The plots and the widgets that notebooks share."""
