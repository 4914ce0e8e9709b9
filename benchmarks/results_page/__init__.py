"""``docs/results.md`` and its pictures, made of the records of runs below ``docs/results``."""
