"""What an evaluation leaves behind: results as they come, their analysis, the comparison of models."""
