"""What an operator offers to runs besides the CLI's own tools: skills, read, checked and laid out for runs."""
