"""SMART: divergences, perturbation, and the Bregman teacher."""
