"""Tasks: lm-eval definitions and what they compute. Models are passed in as arguments."""
