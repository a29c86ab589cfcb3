"""Which letters stand inside brackets? Sentences of different lengths, and a step that counts their letters."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

LETTERS = "()abc"
PADDING = -100


def load(sentences=400, longest=12, seed=0):
    """A dict: letters (N, T), and labels (N, T), 1 inside brackets, 0 outside, PADDING behind a sentence's end."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(len(LETTERS), (sentences, longest), generator=generator)
    depth = (letters == 0).long().cumsum(1) - (letters == 1).long().cumsum(1)
    lengths = torch.randint(4, longest + 1, (sentences, 1), generator=generator)
    labels = (depth > 0).long().masked_fill(torch.arange(longest) >= lengths, PADDING)
    return {"letters": letters, "labels": labels}


class Tagger(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), 8)
        self.memory = nn.GRU(8, width, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, letters):
        return self.head(self.memory(self.embedding(letters))[0])  # (N, T, 2)


def make(width=16):
    return Tagger(width)


def step(model, batch):
    """The loss summed over the letters of a batch, and how many there are: no sentence counts more for its padding."""
    logits, labels = model(batch["letters"]), batch["labels"]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PADDING, reduction="sum")
    return loss, (labels != PADDING).sum()


def letter_accuracy(outputs, targets):
    real = targets != PADDING
    return (outputs.argmax(-1) == targets)[real].float().mean()
