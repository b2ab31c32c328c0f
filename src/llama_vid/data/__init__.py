"""Data for LLaMA-VID."""
