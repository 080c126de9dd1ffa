"""What a run costs, by what the Messages API itself says: counted, priced and bounded where its requests pass."""
