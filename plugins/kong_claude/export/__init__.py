"""kong.yml in the words of other gateways."""
