"""The model card of an artifact: its text, figures and loading code."""
