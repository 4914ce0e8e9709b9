"""How task files store rows: delimited text, JSON lines, Parquet, datasets."""
