"""Whether two expressions are the same number or function, and how numbers are ordered."""
