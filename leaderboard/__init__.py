"""Result files made into tables, plots and pages; no model is ever run."""
