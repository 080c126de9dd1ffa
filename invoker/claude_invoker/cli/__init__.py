"""The Claude CLI as a subprocess: its command line, its isolation, its protocol, its end."""
