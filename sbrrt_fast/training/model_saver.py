"""Writes a run's models: ``best`` and ``last``, each with its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer

from sbrrt_fast.checksums import checksummed_directory, replace_text
from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.model.io import CARD, save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.cards.model_card import DevScores, model_card


@dataclass(frozen=True)
class ModelSaver:
    """The model of a run, and what its card says besides scores.

    Attributes:
        config: the run's. model: as it is trained. tokenizer: the model's.
        splits: the run's tasks by split, ``train`` and ``dev``, and name.
    """

    config: RunConfig
    model: MultiTaskModel
    tokenizer: Tokenizer
    splits: Mapping[str, Mapping[str, TokenizedTask]]

    def save(self, name: str, dev: DevScores) -> None:
        """Replaces the run's folder of that name, ``best`` or ``last``.

        Args:
            dev: scores of the model as it is now.

        Raises:
            OutputError: it cannot be written; the folder before it is unchanged.
        """
        card, longest = self._card(dev), self.config.model.max_length
        with checksummed_directory(self.config.output / name) as folder:
            save_model(self.model, folder, self.tokenizer, max_length=longest, card=card)

    def update_card(self, name: str, dev: DevScores) -> None:
        """Puts other scores of the same weights into a folder's card; errors as in ``save``."""
        replace_text(self.config.output / name, CARD, self._card(dev))

    def _card(self, dev: DevScores) -> str:
        return model_card(self.config, self.model, self.splits, dev)
