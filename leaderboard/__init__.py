"""Result files to tables, plots and pages; never runs a model."""
