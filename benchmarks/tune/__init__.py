"""Programs that look closer: at kernels and their launch choices, at numbers, at the machine."""
