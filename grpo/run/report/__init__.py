"""What `python -m grpo.report` is made of: reading a folder, curves, the page, the terminal, the local server."""
