"""A training script of one's own: hparams are arguments, each epoch is a line of JSON."""

import argparse
import json

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--bs", type=int, default=64)
parser.add_argument("--hidden", type=int, default=32)
parser.add_argument("--epochs", type=int, default=10)
given = parser.parse_args()

digits = load_digits()
train, valid, train_labels, valid_labels = train_test_split(
    digits.data / 16, digits.target, test_size=0.2, random_state=0, stratify=digits.target
)
model = MLPClassifier([given.hidden], learning_rate_init=given.lr, batch_size=given.bs, random_state=0)
for epoch in range(given.epochs):
    model.partial_fit(train, train_labels, classes=range(10))
    print(json.dumps({"epoch": epoch, "loss": model.loss_, "accuracy": model.score(valid, valid_labels)}), flush=True)
