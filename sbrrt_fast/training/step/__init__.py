"""One round: the step, its two kinds of pass, the captured step and the update."""
