"""Search over settings: trials of a recipe whose best dev score is looked for with Optuna."""
