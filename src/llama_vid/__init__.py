"""LLaMA-VID for transformers."""
