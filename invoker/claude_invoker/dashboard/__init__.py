"""The dashboard: pages that show jobs and runs as they go. They work without scripts; with them they live."""
