"""Tokenised splits on disk, which every process maps instead of tokenising them again."""
