"""Timings and experiments that anyone can repeat."""
