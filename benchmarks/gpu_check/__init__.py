"""The check of a GPU machine, ``make gpu-check``: its stages, and the programs that they run."""
