"""What `python -m grpo.download` does: problems and models from the Hub, whole and checked."""
