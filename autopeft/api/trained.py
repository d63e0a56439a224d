"""`autopeft.load`: a backbone with a trained adapter, ready to predict or to answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopeft.backbone.lm_head import LmHead
from autopeft.backbone.loading import load_backbone
from autopeft.errors import BackboneError, Fault, InputError
from autopeft.export.adapter import Adapter, load_adapter
from autopeft.study.metrics import CAUSAL_LM
from autopeft.training.batches import PaddedExamples
from autopeft.training.data.prompts import Prompt, answer_ends, prompt_ids
from autopeft.training.data.request import DataRequest
from autopeft.training.data.text import LabelledTexts
from autopeft.training.data.tokenising import tokenise
from autopeft.training.generation import generate
from autopeft.training.lanes.pack import Lane, Pack
from autopeft.training.lanes.predict import predict
from autopeft.training.lanes.seeds import Seeds
from autopeft.training.precision import forbid_tf32
from autopeft.training.setup import backbone_request, data_request, device_name


class TrainedModel:
    """A trained configuration on its backbone.

    It predicts labels or numbers, or answers prompts, as it was trained to.

    Args:
        adapter: What was trained.
        device: A torch device's name.

    Raises:
        BackboneError: The backbone cannot be loaded, or is another one than it was trained on.
    """

    def __init__(self, adapter: Adapter, *, device: str) -> None:
        forbid_tf32()
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
        recipe = self._backbone.recipe(len(adapter.label_names) or 1)
        lane = Lane(0, adapter.built or adapter.file.configuration)
        self._pack = Pack(
            self._backbone,
            recipe,
            [lane],
            seeds=Seeds(adapter.file.seed),
            saved={0: adapter.weights},
        )
        views = self._pack.lane_views(self._pack.parameters_by_name(), 0)
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(adapter.weights[name])

    @property
    def label_names(self) -> tuple[str, ...]:
        """Classes by number; () for a regression, and where answers are learnt."""
        return self.adapter.label_names

    def logits(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> np.ndarray:
        """float32 [n, n_outputs] for texts, or for pairs of texts.

        Raises:
            InputError: The model answers prompts.
        """
        if self._backbone.lm_head is not None:
            given = "a model that was trained to answer (causal-lm)"
            hint = "use .generate(prompts)"
            raise InputError(Fault("predict", "", given, "models of labels or numbers", hint))
        pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        columns = tuple(tuple(column) for column in zip(*pairs, strict=True))
        unlabelled = LabelledTexts(columns, np.zeros(len(pairs), dtype=np.int64))
        examples = tokenise(self._request(), self._backbone.tokenizer, unlabelled, part="given")
        padded = PaddedExamples(examples, pad_token_id=self._pad, device=self._pack.device)
        return predict([self._pack], padded)[0].cpu().numpy()

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[str] | list[float]:
        """The class (or value) of each text or pair; InputError as `logits`."""
        logits = self.logits(texts)
        if not self.label_names:
            return [float(value) for value in logits[:, 0]]
        return [self.label_names[index] for index in logits.argmax(axis=1)]

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int = 64) -> list[str]:
        """The likeliest answer to each prompt, token by token, up to where the model ends it.

        Args:
            prompts: Texts; rows of columns for the template of `data.prompt`; or, where the data
                were chats, lists of {role, content} (a text is then a turn of the user).
            max_new_tokens: An answer is cut there.

        Raises:
            InputError: The model predicts labels or numbers, or a prompt cannot be read.
        """
        head = self._head(prompts, max_new_tokens)
        tokenizer = self._backbone.tokenizer
        given = prompt_ids(self._request(), tokenizer, prompts)
        ends = answer_ends(self._request(), tokenizer) | _declared_ends(self._backbone.config)
        answers = generate(
            self._pack,
            head,
            given,
            ends=ends,
            pad=self._pad,
            most=max_new_tokens,
            longest=getattr(self._backbone.config, "max_position_embeddings", None),
        )
        return [
            _continuation(tokenizer, prompt, answer)
            for prompt, answer in zip(given, answers, strict=True)
        ]

    def _head(self, prompts: Sequence[Prompt], max_new_tokens: int) -> LmHead:
        faults = []
        head = self._backbone.lm_head
        if head is None:
            given = f"a model of {self.adapter.file.model.task}"
            hint = "use .predict(texts)"
            faults.append(Fault("generate", "", given, f"models of {CAUSAL_LM}", hint))
        if isinstance(prompts, str):
            faults.append(Fault("generate", "prompts", "one text", "a list of texts"))
        if max_new_tokens < 1:
            faults.append(Fault("generate", "max_new_tokens", str(max_new_tokens), "at least 1"))
        if faults or head is None:
            raise InputError(faults)
        return head

    def _request(self) -> DataRequest:
        file = self.adapter.file
        return data_request(file.data, task=file.model.task, seed=file.seed)

    @property
    def _pad(self) -> int:
        return self._backbone.tokenizer.pad_token_id or 0


def _declared_ends(config: Any) -> frozenset[int]:
    """The end tokens of a model's configuration: one, several or none."""
    declared = getattr(config, "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in listed if token is not None)


def _continuation(tokenizer: Any, prompt: list[int], answer: list[int]) -> str:
    """The answer as it stands behind its prompt: a space that parts the two is the answer's."""
    before, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, prompt + answer)
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def load(directory: Path | str, *, device: str = "auto") -> TrainedModel:
    """A folder that `autopeft train` wrote, on its backbone.

    Raises:
        InputError: The folder is none, or the backbone cannot be had.
    """
    return TrainedModel(load_adapter(Path(directory)), device=device_name(device))
