"""The paper's tables, and two variants of a run side by side."""
