"""What an answer says: text to typed tree, and whether two trees mean the same."""
