"""`autopeft.load`: a backbone with a trained adapter, ready to predict."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from autopeft.backbone.loading import load_backbone
from autopeft.errors import BackboneError, Fault
from autopeft.export.adapter import Adapter, load_adapter
from autopeft.training.batches import PaddedExamples
from autopeft.training.data.text import LabelledTexts
from autopeft.training.data.tokenising import tokenise
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.predict import predict
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.setup import backbone_request, data_request, device_name


class TrainedModel:
    """A trained configuration on its backbone.

    Args:
        adapter: What was trained.
        device: A torch device's name.

    Raises:
        BackboneError: The backbone cannot be loaded, or is another one than it was trained on.
    """

    def __init__(self, adapter: Adapter, *, device: str) -> None:
        self.adapter = adapter
        self._backbone = load_backbone(backbone_request(adapter.file.model, device=device))
        trained_on = adapter.file.model_fingerprint
        if trained_on is not None and trained_on != self._backbone.fingerprint:
            raise BackboneError(
                Fault(
                    "autopeft.yaml",
                    "model.fingerprint",
                    f"{self._backbone.fingerprint[:12]}, the backbone found now",
                    f"{trained_on[:12]}, the one it was trained on",
                )
            )
        outputs = len(adapter.label_names) or 1
        lane = Lane(0, adapter.file.configuration)
        self._pack = Pack(
            self._backbone, self._backbone.head(outputs), [lane], seeds=Seeds(adapter.file.seed)
        )
        views = self._pack.lane_views(self._pack.parameters_by_name(), 0)
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(adapter.weights[name])

    @property
    def label_names(self) -> tuple[str, ...]:
        """Classes by number; () for a regression."""
        return self.adapter.label_names

    def logits(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> np.ndarray:
        """float32 [n, n_outputs] for texts, or for pairs of texts."""
        file = self.adapter.file
        request = data_request(file.data, task=file.model.task, seed=file.seed)
        pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        columns = tuple(tuple(column) for column in zip(*pairs, strict=True))
        unlabelled = LabelledTexts(columns, np.zeros(len(pairs), dtype=np.int64))
        examples = tokenise(request, self._backbone.tokenizer, unlabelled, part="given")
        pad = self._backbone.tokenizer.pad_token_id or 0
        padded = PaddedExamples(examples, pad_token_id=pad, device=self._pack.device)
        return predict(self._pack, padded)[0].cpu().numpy()

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[str] | list[float]:
        """The class (or value) of each text or pair."""
        logits = self.logits(texts)
        if not self.label_names:
            return [float(value) for value in logits[:, 0]]
        return [self.label_names[index] for index in logits.argmax(axis=1)]


def load(directory: Path | str, *, device: str = "auto") -> TrainedModel:
    """A folder that `autopeft train` wrote, on its backbone.

    Raises:
        InputError: The folder is none, or the backbone cannot be had.
    """
    return TrainedModel(load_adapter(Path(directory)), device=device_name(device))
