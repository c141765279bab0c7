"""Another project's package. It imports `ltm` by its public names alone, and nothing of ours imports it."""
