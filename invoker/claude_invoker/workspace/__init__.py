"""What a run works on: a repository at a commit, and what the run has changed of it."""
