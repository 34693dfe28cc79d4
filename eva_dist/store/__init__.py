"""Where artifacts are published and found again."""
