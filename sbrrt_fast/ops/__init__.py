"""Operations of the SBRRT step, each with a plain reference and a choice of implementation."""
