"""A model whose answer is an object with `.logits`, as Hugging Face's are, as a module that answers with the tensor."""

from torch import Tensor, nn


class Logits(nn.Module):
    """`model(input_ids=ids)` or, with `pad`, `model(input_ids=ids, attention_mask=ids != pad)`, and of its answer the `.logits`.

    `ids` (B, L) whole numbers; the answer is (B, L, vocabulary) of a language model, (B, classes) of a classifier. Labels are never handed in, so the model
    computes no loss of its own; next-token targets are already shifted by `data.streams.Windows`. The wrapped model keeps its parameters, under `model.`.

    ValueError where the answer has no `.logits`, or they are no tensor.
    """

    def __init__(self, model: nn.Module, pad: int | None = None) -> None:
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, ids: Tensor) -> Tensor:
        """The logits."""
        answer = self.model(input_ids=ids) if self.pad is None else self.model(input_ids=ids, attention_mask=(ids != self.pad).long())
        logits = getattr(answer, "logits", None)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"{type(self.model).__name__} answers with {type(answer).__name__}, which has no tensor `.logits`: take a model with a head, "
                "such as GPT2LMHeadModel."
            )
        return logits
