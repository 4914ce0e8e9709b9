"""What users of other libraries would write for the same work."""
