"""The pre-training as the stage before the first: a masked LM, and texts that it may have learned from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lr_dist.errors import InfluenceError
from lr_dist.retention.influence.model_stage import ModelStage
from lr_dist.retention.influence.objectives import NOT_MASKED, MaskedTokens
from lr_dist.retention.prepare import TextRows, draw_rows, load_before
from lr_dist.retention.text_config import RetentionConfig
from lr_dist.retention.texts import TokenRow
from lr_dist.tracing.kept_run import KeptRun

SHARE = 0.15
"""Share of a text's tokens that a mask hides, as in BERT's pre-training."""

# The head is not carried over to a task, and the decoder's curvature would have the size of the vocabulary squared.
_CONSTANT = ("head",)


@dataclass(frozen=True, eq=False)
class Pretraining:
    """Texts and the pre-trained model with its masked-LM head.

    Attributes:
        stage: each text under several masks.
        texts: the candidates, as the tokenizer reads them.
        masks: of each text.
        rows: candidates, and other texts that a head was fitted on.
    """

    stage: ModelStage
    texts: tuple[str, ...]
    masks: int
    rows: TextRows

    @classmethod
    def of(
        cls,
        run: KeptRun,
        config: RetentionConfig,
        *,
        masks: int,
        batch_size: int,
        folder: Path | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> Pretraining:
        """Draw texts, and find or fit the head of the model that the run began with.

        Args:
            run: of which the pre-trained model is taken.
            config: the text file, how many texts are candidates (`texts`), and the head.
            masks: K; a text's gradient is the mean over K masks.
            batch_size: texts in one pass.
            folder: where a fitted head is kept.
            note: receives a line if a head is fitted.

        Raises:
            InfluenceError: the run began with a fine-tuned model.
            RetentionTextError: a text that cannot be used.
            NoMaskedLMHeadError: the model has no head, and there is no text to fit one on.
        """
        bench = run.bench
        if bench.start is not None:
            raise InfluenceError(
                f"The run began with a fine-tuned model ({run.result.config['start']}), not with a pre-trained one, so "
                "the pre-training is not the stage before it. Trace a run of `lr-dist compare` without --start."
            )
        rows = draw_rows(config, bench.tokenizer)
        fitting: list[str] = []

        def report(doing: str, done: int, total: int) -> None:
            if doing not in fitting:
                fitting.append(doing)
                note(f"Masked LM: {doing} ({len(rows.fitted)} texts)")

        masked_lm = load_before(
            run.result.config["model"],
            copy.deepcopy(bench.backbone),
            bench.tokenizer,
            rows,
            config,
            precision=bench.settings.precision,
            folder=folder,
            report=report,
        )
        stage = masked_stage(
            MaskedBackbone(masked_lm.encoder, masked_lm.head),
            rows.scored,
            mask_id=masked_lm.mask_id,
            pad_id=masked_lm.pad_id,
            masks=masks,
            batch_size=batch_size,
            seed=config.seed,
        )
        texts = tuple(bench.tokenizer.decode(row.ids, skip_special_tokens=True) for row in rows.scored)
        return cls(stage, texts, masks, rows)


class MaskedBackbone(nn.Module):
    """A masked LM whose encoder has the name that it has in a run's model, and whose logits are of hidden places."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [texts, places, vocabulary]."""
        states = self.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        places = batch["places"]
        hidden = states.gather(1, places[:, :, None].expand(-1, -1, states.shape[-1]))
        # A head takes one list of places.
        return self.head(hidden.flatten(0, 1)).unflatten(0, places.shape)  # type: ignore[no-any-return]


def masked_stage(
    model: MaskedBackbone,
    rows: Sequence[TokenRow],
    *,
    mask_id: int,
    pad_id: int,
    masks: int,
    batch_size: int,
    seed: int,
) -> ModelStage:
    """Texts as a stage, each under `masks` masks that hide `SHARE` of its tokens, at least one.

    A text's masks depend on the seed, its number and its length only.
    """
    masked = []
    for number, row in enumerate(rows):
        for mask in range(masks):
            draw = np.random.default_rng([seed, number, mask])
            count = max(1, round(SHARE * len(row)))
            places = row.ordinary[torch.from_numpy(np.sort(draw.permutation(len(row))[:count]))]
            ids = row.ids.clone()
            ids[places] = mask_id
            masked.append({"input_ids": ids, "places": places, "label": row.ids[places]})
    return ModelStage(
        model,
        MaskedTokens(lambda module, batch: module(batch)),
        masked,
        _Padded(pad_id),
        repeats=masks,
        batch_size=batch_size,
        constant=_CONSTANT,
    )


@dataclass(frozen=True)
class _Padded:
    """Rows of different lengths as one batch."""

    pad_id: int

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=self.pad_id)
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            "places": pad_sequence([row["places"] for row in rows], batch_first=True),
            "labels": pad_sequence([row["label"] for row in rows], batch_first=True, padding_value=NOT_MASKED),
        }
