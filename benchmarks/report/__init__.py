"""What is made of measurements: the report, its plots and goals, the floor, two runs compared."""
