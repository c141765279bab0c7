"""An example of another project's package. It imports `ltm` by its public names, and nothing there imports it."""
