"""An ordinary Optuna script: `python net.py` runs it without tunecli."""

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

EPOCHS = 10

digits = load_digits()
inputs, targets = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train_inputs, valid_inputs, train_targets, valid_targets = train_test_split(
    inputs, targets, test_size=0.2, random_state=0, stratify=targets
)


def make_model(trial):
    layers, features = [], 64
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        units = trial.suggest_int(f"n_units_l{i}", 8, 128, log=True)
        layers += [nn.Linear(features, units), nn.ReLU(), nn.Dropout(trial.suggest_float(f"dropout_l{i}", 0.0, 0.5))]
        features = units
    return nn.Sequential(*layers, nn.Linear(features, 10))


def objective(trial):
    model = make_model(trial)
    name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=lr)
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(train_inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train_inputs[batch]), train_targets[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(valid_inputs).argmax(1) == valid_targets).float().mean().item()
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return accuracy


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=30)
    print(study.best_params, study.best_value)
