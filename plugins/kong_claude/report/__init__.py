"""What the access logs tell about a span of time: read in one pass, summed in bounded memory, shown in four forms."""
