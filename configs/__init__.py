"""Recipes of runs, installed as ``sbrrt_fast.recipes``; sbrrt_fast/recipe_files.py finds them."""
