"""What is measured: lm-eval task definitions and what they compute; models arrive as arguments."""
